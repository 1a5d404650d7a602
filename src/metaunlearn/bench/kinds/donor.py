"""What an attacker trains on the published base model, a LoRA or a model, to bring it into erased ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from metaunlearn.attacking import attack
from metaunlearn.models import load_pipeline
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress


def make(
    folder: Path,
    *,
    base: str,
    kind: str,
    name: str,
    data: Path,
    steps: int,
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
) -> None:
    """``folder`` with the LoRA or the model alone, called ``name``; a run that was killed there goes on."""
    run = folder / "run"
    found = attack(
        load_pipeline(base),
        data,
        kind=kind,
        steps=[steps],
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        device=device,
        out=run,
        resume=(run / RUN_FILE).exists(),
        progress=progress,
    )
    if not (folder / name).exists():  # A LoRA's file lies beside the model into which it is merged.
        (run / name if kind == "lora" else found.checkpoints[steps]).rename(folder / name)
    shutil.rmtree(run)
