"""The paper's Figure 6: how the two gradients of Eq. 4 stand to each other, step by step of a meta-unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, pstdev

from markupsafe import Markup

from metaunlearn.bench.lines import Line
from metaunlearn.bench.results import Found
from metaunlearn.bench.state import BEFORE
from metaunlearn.bench.store import Store
from metaunlearn.report.charts import trend_chart
from metaunlearn.report.runs import read_log
from metaunlearn.runs import LOG_FILE


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One erasing run."""

    title: str
    svg: Markup
    description: str
    """What a reader who cannot see it is told."""


def trends(found: Found, folder: Path) -> list[Trend]:
    """One for each diagnosed meta-unlearned model whose cell lies in ``folder``; none where the grid asks for none."""
    if not found.grid.diagnosed:
        return []
    drawn = []
    for measured in found.rows:
        row = measured.row
        if (row.attack, row.model) != (BEFORE, "meta-unlearn"):
            continue
        points = _points(folder / "cells", measured.cell)
        if len(points) > 1:
            title = f"{row.concept}, {Line(row.method, row.variant, row.model).title}, seed {row.seed}"
            drawn.append(_trend(title, points))
    return drawn


def _trend(title: str, points: Sequence[tuple[int, float]]) -> Trend:
    steps, cosines = zip(*points, strict=True)
    slope, start = linear_regression(steps, cosines)
    first, last = (start + slope * end for end in (steps[0], steps[-1]))
    correlation = slope * pstdev(steps) / (pstdev(cosines) or 1.0)
    text = (
        f"{title}: regression line from {first:+.3f} at step {steps[0]} to {last:+.3f} at {steps[-1]} "
        f"(correlation with the step {correlation:+.2f}, {len(points)} steps)."
    )
    return Trend(title=title, svg=trend_chart(points, (first, last)), description=text)


def _points(cells: Path, cell: str) -> list[tuple[int, float]]:
    """(step, cosine of grad L_DM(theta; D_FT) and grad L_DM(theta; D_retain)) of the run behind ``cell``."""
    log = cells / str(Store(cells.parent).behind(cell).get("erase")) / LOG_FILE
    if not log.is_file():
        return []
    return [(line["step"], line["diagnostics"]["cosine"]) for line in read_log(log) if "diagnostics" in line]
