"""One attack on an erased model: the denoiser after each of the steps that are asked for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from metaunlearn.attacking import attack
from metaunlearn.models.state import load_state
from metaunlearn.runs import RUN_FILE, Progress

DENOISER = "unet"


def make(
    folder: Path,
    *,
    erase: Path,
    data: Path,
    kind: str,
    steps: Sequence[int],
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
    warm: Path | None = None,
    warm_step: int = 0,
) -> None:
    """``folder/step-000010/unet`` and so on; everything else of the pipelines is the erased model's.

    With ``warm``, another attack's cell, the attacker goes on from what that one left after ``warm_step`` steps.
    """
    result = attack(
        load_state(str(erase), None, warm, warm_step),
        data,
        kind=kind,
        steps=steps,
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        device=device,
        out=folder,
        resume=(folder / RUN_FILE).exists(),
        progress=progress,
    )
    checkpoints = {path.name for path in result.checkpoints.values()}
    for entry in folder.iterdir():
        if entry.name in checkpoints:
            _remove([part for part in entry.iterdir() if part.name != DENOISER])
        elif entry.suffix not in (".json", ".jsonl"):
            _remove([entry])
    (folder / "model_index.json").unlink(missing_ok=True)
    (folder / "sampling.json").unlink(missing_ok=True)


def _remove(entries: Sequence[Path]) -> None:
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
