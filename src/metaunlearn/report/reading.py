"""What a chart says at each of its steps, for the script that shows it under the pointer (``templates/read.js``)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from metaunlearn.report.charts import Curve, Frame
from metaunlearn.report.story import MODEL_TITLES

IN_THE_TABLE = "All figures are in the table below it."
"""Ends what is said of a chart to somebody who cannot see it."""


def reading(curves: Sequence[Curve], frame: Frame, last: int) -> str:
    """JSON: the plotting area as shares of the drawing (left, top, width, height), and the words at each step.

    ``last`` is the step at the right end of the axis.
    """
    whole = frame.top + frame.height + frame.bottom
    area = (frame.left, frame.width - frame.left - frame.right, frame.width)
    steps = sorted({step for curve in curves for step, _ in curve.points})
    return json.dumps(
        {
            "plot": [
                round(area[0] / area[2], 4),
                round(frame.top / whole, 4),
                round(area[1] / area[2], 4),
                round(frame.height / whole, 4),
            ],
            "last": last,
            "steps": [{"at": step, "rows": _rows(curves, step)} for step in steps],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _rows(curves: Sequence[Curve], step: int) -> list[list[str]]:
    """(model, its title, figure, interval, attack) of each curve that has a point at ``step``."""
    rows = []
    for curve in curves:
        by = curve.by or [""] * len(curve.points)
        for (at, score), attack in zip(curve.points, by, strict=True):
            if at == step:
                interval = "" if score.low is None or score.high is None else f"{score.low:.1f}–{score.high:.1f}"
                rows.append([curve.model, MODEL_TITLES[curve.model], f"{score.value:.1f} %", interval, attack])
    return rows
