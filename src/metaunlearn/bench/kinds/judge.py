"""What is seen in the pictures that an attack left, at one strength: for attacks that start from real pictures."""

from __future__ import annotations

from pathlib import Path

from metaunlearn.canvas.measure import concept_seen, save_shown
from metaunlearn.canvas.scenes import IMAGE_SIZE
from metaunlearn.canvas.tasks import task_for
from metaunlearn.data.imagefolder import read_imagefolder
from metaunlearn.metrics.judge import load_judge
from metaunlearn.metrics.scores_file import with_raw, write_scores
from metaunlearn.runs import Progress


def make(
    folder: Path, *, attack: Path, at: str, concept: str, shown: int, device: str, progress: Progress | None
) -> None:
    """``folder/scores.json`` with the concept's score alone, of the imagefolder ``attack/at``."""
    score, part = concept_seen(read_imagefolder(attack / at, size=IMAGE_SIZE), task_for(concept), load_judge("canvas"))
    write_scores(folder, with_raw({"concept": score}), save_shown(folder / "samples", [part], shown))
