"""The worst case of a grid: what the strongest of its malicious attacks has brought back by each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaunlearn.bench.entries import at
from metaunlearn.bench.lines import Line
from metaunlearn.bench.results import Measured, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.report.charts import Curve
from metaunlearn.report.data import Score

WORST = "Worst of the malicious attacks"
WORST_NOTE = (
    "at each step the most that any of them had brought back by then, over the checkpoints that both models have"
)


def worst_curves(
    pair: Sequence[Line], lines: Mapping[Line, list[Measured]], attacks: Mapping[str, Sequence[int]]
) -> list[Curve]:
    """For each model of ``pair``, at each step the highest percentage of all checkpoints up to it.

    ``attacks`` are the names of the malicious ones with their steps. Checkpoints that not every model of ``pair`` has
    do not count, so that no model looks better for what was not measured. An interval is its own attack's.
    """
    places = sorted(((attack, step) for attack, steps in attacks.items() for step in steps), key=lambda place: place[1])
    scores = {line: {place: _score(lines[line], place) for place in [(BEFORE, 0), *places]} for line in pair}
    shared = [place for place in places if all(scores[line][place] is not None for line in pair)]
    if not shared:
        return []
    return [_curve(line, scores[line], shared) for line in pair]


def _curve(line: Line, scores: Mapping[tuple[str, int], Score | None], places: Sequence[tuple[str, int]]) -> Curve:
    """``places`` in the order of their steps."""
    worst: dict[int, tuple[Score, str]] = {}
    before = scores[BEFORE, 0]
    highest: tuple[Score, str] | None = None if before is None else (before, "")
    if highest is not None:
        worst[0] = highest
    for name, step in places:
        score = scores[name, step]
        if score is not None and (highest is None or score.value > highest[0].value):
            highest = (score, name)
        if highest is not None:
            worst[step] = highest
    return Curve(
        model=line.model,
        points=[(step, score) for step, (score, _) in worst.items()],
        by=[name for _, name in worst.values()],
    )


def _score(rows: Sequence[Measured], place: tuple[str, int]) -> Score | None:
    score = pooled(at(rows, place), "concept")
    return None if score is None else Score(score.value, score.low, score.high)
