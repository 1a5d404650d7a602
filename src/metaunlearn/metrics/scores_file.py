"""What a measuring cell leaves: ``scores.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.files import write_json
from metaunlearn.metrics.intervals import Score

SCORES_FILE = "scores.json"


def with_raw(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Each score with its interval, its protocol and what was seen in every picture: JSON values."""
    return {name: {**score.to_dict(), "raw": [dict(row) for row in score.raw]} for name, score in scores.items()}


def write_scores(folder: Path, scores: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
    """``scores`` by name, and a record for each picture that is shown of them."""
    write_json(folder / SCORES_FILE, {"scores": scores, "samples": samples})
