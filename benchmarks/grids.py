"""What several pages are made of: the results of grids, and one model's scores in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from metaunlearn.bench.results import Found, found_in
from metaunlearn.bench.state import BEFORE
from metaunlearn.metrics.relearning import Curve

CHOSEN_ON = "AdamW"
"""The attack that the settings were chosen on."""
UNTOUCHED = (BEFORE, 0)
Scores = dict[tuple[str, float], dict[str, float]]
"""Of one model, by attack and step: what was measured there, by name."""


def read(files: Sequence[Path]) -> list[Found]:
    """What grids found."""
    return [found_in(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def scores_of(found: Found, concept: str, seed: int, *, method: str, variant: str = "") -> dict[str, Scores]:
    """By model, the original among them."""
    scores: dict[str, Scores] = {}
    for measured in found.rows:
        row = measured.row
        mine = row.model == "original" or (row.method, row.variant) == (method, variant)
        if (row.concept, row.seed) == (concept, seed) and mine:
            values = {name: score["value"] for name, score in measured.scores.items()}
            scores.setdefault(row.model, {})[row.attack, row.step] = values
    return scores


def seen(model: Scores, attack: str) -> list[float]:
    """How often the concept is, at the checkpoints of ``attack``."""
    return [values["concept"] for (name, _), values in sorted(model.items()) if name == attack]


def curve(model: Scores) -> Curve:
    """The same as a curve, from before the attack that the settings were chosen on."""
    points = {0: model[UNTOUCHED]["concept"]}
    points |= {int(step): values["concept"] for (name, step), values in sorted(model.items()) if name == CHOSEN_ON}
    return Curve(tuple(points), tuple(points.values()))


def in_steps(found: float | None) -> str:
    """How late, in words."""
    return "not reached" if found is None else f"{found:.0f}"
