"""Relearning curves of a grid: for each concept and attack, a small chart for each method, plain and meta together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.entries import at
from metaunlearn.bench.formats import Entry, Table, slug
from metaunlearn.bench.lines import Line, by_line, pairs_of
from metaunlearn.bench.recipe import CANVAS, GridConcept, steps_of
from metaunlearn.bench.results import Found, Measured, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.report.charts import SMALL, WHOLE, Curve, relearning_chart
from metaunlearn.report.data import Score
from metaunlearn.report.grid.worst import WORST, WORST_NOTE, worst_curves
from metaunlearn.report.reading import IN_THE_TABLE, reading
from metaunlearn.report.story import MODEL_TITLES


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The small chart of one method."""

    title: str
    svg: Markup
    description: str
    """What a reader who cannot see it is told."""
    reading: str
    """What the page's script says of each step."""
    curves: list[Curve]


@dataclass(frozen=True, kw_only=True)
class AttackChart:
    """What all methods hold under one attack."""

    title: str
    note: str
    facets: list[Facet]
    table: Table
    """The figures of all facets, a row for each step."""


@dataclass(frozen=True)
class _Drawn:
    """What every chart of a concept is drawn with."""

    whole: bool
    """Whether a chart has the size of one by itself."""
    level: float | None
    """The original's, in percent."""

    def facet(self, title: str, under: str, curves: list[Curve], steps: Sequence[int]) -> Facet:
        frame = WHOLE if self.whole else SMALL
        said = [
            f"{MODEL_TITLES[curve.model]}: {curve.points[0][1].value:.0f} → {curve.points[-1][1].value:.0f} %"
            for curve in curves
        ]
        reference = [] if self.level is None else [f"the original is at {self.level:.0f} %"]
        last = max(*steps, *(step for curve in curves for step, _ in curve.points))
        return Facet(
            title=title,
            svg=relearning_chart(curves, self.level, frame=frame, steps=steps),
            description=f"{title} under {under}. {'; '.join([*said, *reference])}. {IN_THE_TABLE}",
            reading=reading(curves, frame, last),
            curves=curves,
        )


def attack_charts(found: Found, concept: GridConcept) -> list[AttackChart]:
    """A chart for each attack that trains and of which something is measured, after them the worst of the malicious.

    Percentages pooled over the seeds. With one method each chart has the size of one by itself.
    """
    lines = by_line(measured for measured in found.rows if measured.row.concept == concept.name)
    original = next((mine for line, mine in lines.items() if line.model == "original"), [])
    level = pooled(at(original, (BEFORE, 0)), "concept")
    pairs = pairs_of(list(lines))
    drawn = _Drawn(len(pairs) == 1, None if level is None else level.value)
    trained = [(attack, steps_of(attack, concept)) for attack in found.grid.attacks if attack.trains]
    charts = []
    for attack, steps in trained:
        curves = [_curves(pair, lines, attack, steps) for pair in pairs]
        kind = "malicious" if attack.malicious else "benign"
        pictures = f"{attack.pictures} pictures" if found.grid.base == CANVAS else "the given pictures"
        note = f"{kind}: {attack.kind} on {pictures}, {steps[-1]} steps"
        charts.append(_chart(attack.name, note, concept, pairs, curves, steps, drawn))
    malicious = {attack.name: steps for attack, steps in trained if attack.malicious}
    if len(malicious) > 1:
        steps = tuple(sorted({step for those in malicious.values() for step in those}))
        curves = [worst_curves(pair, lines, malicious) for pair in pairs]
        charts.append(_chart(WORST, WORST_NOTE, concept, pairs, curves, steps, drawn))
    return [chart for chart in charts if chart.facets]


def _chart(
    title: str,
    note: str,
    concept: GridConcept,
    pairs: Sequence[Sequence[Line]],
    curves: Sequence[list[Curve]],
    steps: Sequence[int],
    drawn: _Drawn,
) -> AttackChart:
    facets = [drawn.facet(pair[-1].title, title, mine, steps) for pair, mine in zip(pairs, curves, strict=True) if mine]
    return AttackChart(title=title, note=note, facets=facets, table=_table(concept.name, title, facets))


def _table(concept: str, title: str, facets: Sequence[Facet]) -> Table:
    """A row for each step, a column for each curve."""
    columns = [(facet.title, curve) for facet in facets for curve in facet.curves]
    steps = sorted({step for _, curve in columns for step, _ in curve.points})
    shown = [_entries(curve) for _, curve in columns]
    return Table(
        name=slug(f"{concept} {title}"),
        title=f"{concept}, {title}: how often it is seen (%)",
        heads=["steps", *(f"{method}, {curve.model}" for method, curve in columns)],
        named=1,
        rows=[[Entry(str(step)), *(entries.get(step, Entry("–")) for entries in shown)] for step in steps],
    )


def _entries(curve: Curve) -> dict[int, Entry]:
    by = curve.by or [""] * len(curve.points)
    return {
        step: Entry(
            f"{score.value:.1f}",
            score.value,
            "" if score.low is None else f"{score.low:.1f}",
            "" if score.high is None else f"{score.high:.1f}",
            attack,
        )
        for (step, score), attack in zip(curve.points, by, strict=True)
    }


def _curves(
    pair: Sequence[Line], lines: Mapping[Line, list[Measured]], attack: GridAttack, steps: Sequence[int]
) -> list[Curve]:
    """One for each model of ``pair`` that was measured under ``attack``."""
    curves = []
    for line in pair:
        points = []
        for place in [(BEFORE, 0), *((attack.name, step) for step in steps)]:
            score = pooled(at(lines[line], place), "concept")
            if score is not None:
                points.append((place[1], Score(score.value, score.low, score.high)))
        if points and points[-1][0]:
            curves.append(Curve(model=line.model, points=points))
    return curves
