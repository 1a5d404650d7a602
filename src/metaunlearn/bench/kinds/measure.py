"""Scores of one state of one model: the original, an erased one, or an erased one after some steps of an attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metaunlearn.canvas.measure import measure, save_shown
from metaunlearn.canvas.tasks import task_for
from metaunlearn.config import Counts
from metaunlearn.metrics.judge import load_judge
from metaunlearn.metrics.scores_file import with_raw, write_scores
from metaunlearn.models.state import load_state
from metaunlearn.runs import Progress, labelled


def make(
    folder: Path,
    *,
    base: str,
    concept: str,
    counts: Mapping[str, int],
    shown: int,
    seed: int,
    device: str,
    progress: Progress | None,
    erase: Path | None = None,
    attack: Path | None = None,
    at: str = "",
    word: str = "",
) -> None:
    """``folder/scores.json``: each score with its interval, its protocol and what was seen in every picture.

    The state is what ``attack`` left in ``at``; prompts have ``word`` where the concept's name was, if there is one.
    """
    found = measure(
        load_state(base, erase, attack, at).to(device),
        task_for(concept, word),
        load_judge("canvas"),
        Counts(**counts),
        seed=seed,
        progress=labelled(progress, "drawing"),
    )
    write_scores(folder, with_raw(found.scores()), save_shown(folder / "samples", found.shown, shown))
