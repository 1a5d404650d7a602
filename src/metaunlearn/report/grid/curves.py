"""Relearning curves of a grid: for each concept and attack, a small chart for each method, plain and meta together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.entries import at
from metaunlearn.bench.lines import Line, by_line, pairs_of
from metaunlearn.bench.recipe import CANVAS, GridConcept, steps_of
from metaunlearn.bench.results import Found, Measured, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.report.charts import SMALL, Curve, Frame, relearning_chart
from metaunlearn.report.data import ModelName, Score
from metaunlearn.report.story import MODEL_TITLES


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The small chart of one method."""

    title: str
    svg: Markup
    description: str
    """What a reader who cannot see it is told."""


@dataclass(frozen=True, kw_only=True)
class AttackChart:
    """What all methods hold under one attack."""

    title: str
    note: str
    facets: list[Facet]


def attack_charts(found: Found, concept: GridConcept, frame: Frame = SMALL) -> list[AttackChart]:
    """A chart for each attack that trains and of which something is measured; percentages pooled over the seeds."""
    rows = [measured for measured in found.rows if measured.row.concept == concept.name]
    lines = by_line(rows)
    original = next((mine for line, mine in lines.items() if line.model == "original"), [])
    level = pooled(at(original, (BEFORE, 0)), "concept")
    charts = []
    for attack in (attack for attack in found.grid.attacks if attack.trains):
        steps = steps_of(attack, concept)
        facets = [
            facet
            for pair in pairs_of(list(lines))
            if (facet := _facet(pair, lines, attack, steps, None if level is None else level.value, frame))
        ]
        if facets:
            kind = "malicious" if attack.malicious else "benign"
            pictures = f"{attack.pictures} pictures" if found.grid.base == CANVAS else "the given pictures"
            note = f"{kind}: {attack.kind} on {pictures}, {steps[-1]} steps"
            charts.append(AttackChart(title=attack.name, note=note, facets=facets))
    return charts


def _facet(
    pair: Sequence[Line],
    lines: dict[Line, list[Measured]],
    attack: GridAttack,
    steps: Sequence[int],
    level: float | None,
    frame: Frame,
) -> Facet | None:
    curves = [curve for line in pair if (curve := _curve(line.model, lines[line], attack, steps))]
    if not curves:
        return None
    title = pair[-1].title
    said = [
        f"{MODEL_TITLES[curve.model]}: {curve.points[0][1].value:.0f} → {curve.points[-1][1].value:.0f} %"
        for curve in curves
    ]
    reference = [] if level is None else [f"the original is at {level:.0f} %"]
    return Facet(
        title=title,
        svg=relearning_chart(curves, level, frame=frame, steps=steps),
        description=f"{title} under {attack.name}. {'; '.join([*said, *reference])}.",
    )


def _curve(model: ModelName, rows: list[Measured], attack: GridAttack, steps: Sequence[int]) -> Curve | None:
    points = []
    for place in [(BEFORE, 0), *((attack.name, step) for step in steps)]:
        score = pooled(at(rows, place), "concept")
        if score is not None:
            points.append((place[1], Score(score.value, score.low, score.high)))
    return Curve(model=model, points=points) if points and points[-1][0] else None
