"""The attacker's real pictures."""

from __future__ import annotations

from pathlib import Path

from metaunlearn.canvas.datasets import write_dataset
from metaunlearn.checkpoint import step_generator
from metaunlearn.runs import Progress


def make(
    folder: Path, *, dataset: str, concept: str, pictures: int, seed: int, device: str, progress: Progress | None
) -> None:
    """``folder`` as an imagefolder."""
    write_dataset(folder, dataset, concept, pictures, step_generator(seed, 0, f"pictures {dataset}"))
