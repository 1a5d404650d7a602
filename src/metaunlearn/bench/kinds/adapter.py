"""A LoRA that an attacker trains on the published base model, to merge it into erased ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from metaunlearn.attacking import attack
from metaunlearn.attacks.lora import WEIGHTS_FILE as ADAPTER_FILE
from metaunlearn.models import load_pipeline
from metaunlearn.runs import RUN_FILE, Progress


def make(
    folder: Path,
    *,
    base: str,
    data: Path,
    steps: int,
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
) -> None:
    """``folder`` with the adapter alone; a run that was killed there goes on."""
    run = folder / "run"
    attack(
        load_pipeline(base),
        data,
        kind="lora",
        steps=[steps],
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        device=device,
        out=run,
        resume=(run / RUN_FILE).exists(),
        progress=progress,
    )
    (run / ADAPTER_FILE).rename(folder / ADAPTER_FILE)
    shutil.rmtree(run)
