"""The frontier as a drawing of its own, ``frontier.svg``: what was lost across, what comes back upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaunlearn.report.charts import Frame, as_file, draw
from metaunlearn.report.scatter import axis, layer, percent_axis, points, words
from metaunlearn.tuning.records import BASELINES, Record, frontier

FRAME = Frame(width=560, height=300, left=56, right=24, top=24)
ALL, BEST, MARKED = "var(--original)", "var(--meta)", "var(--unlearn)"
"""Colours: of all trials, of those that nothing beats, of the baselines."""
BESIDE = 6
"""Pixels from the middle of a point to where its name begins."""
BELOW = 27
"""Pixels from one baseline's name to the next one's, where both lie on one point."""


def figure(records: Sequence[Record]) -> str:
    """A whole SVG file; trials that failed or were given up are not in it. Those of ``start`` have their numbers."""
    drawn = [record for record in records if record.status == "complete"]
    best = frontier(records)
    starts = [_point(record) for record in drawn if record.role == "start" and record not in best]
    searched = [_point(record) for record in drawn if record.role not in BASELINES]
    baselines = [_point(record) for record in drawn if record.role in BASELINES]
    # A baseline's settings may come again, under its name then.
    named = {(record.lost, record.regained) for record in drawn if record.role in BASELINES}
    numbered = [_point(record) for record in best if (record.lost, record.regained) not in named]
    limit = max([1.0, *(point["lost"] for point in [*searched, *baselines])])
    lost = "lost before any attack (points of unrelated concepts)"
    place = {
        "x": axis("lost", lost, scale={"domain": [0, limit * 1.08], "nice": False}, grid=False, tickCount=6),
        "y": percent_axis("regained", "shows the concept under the worst attack (%)"),
    }
    edge = [_point(record) for record in best]
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "color": BEST}
    layers = [
        points(searched, place, ALL, 28, opacity=0.45),
        words(starts, place, "trial", ALL, dx=BESIDE, dy=-9),
        layer(edge, line, place),
        points(edge, place, BEST, 64),
        words(numbered, place, "trial", BEST, dx=BESIDE, dy=-11),
        points(baselines, place, MARKED, 110, shape="diamond"),
        *(
            words(turn, place, "role", MARKED, dx=BESIDE, dy=BELOW * depth - 13)
            for depth, turn in enumerate(_stacked(baselines))
        ),
    ]
    return as_file(draw({"layer": layers}, FRAME))


def _stacked(baselines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The baselines in turns, in each of which no two lie on one point."""
    turns: list[list[dict[str, Any]]] = []
    for point in baselines:
        at = (point["lost"], point["regained"])
        free = next((turn for turn in turns if at not in [(p["lost"], p["regained"]) for p in turn]), None)
        if free is None:
            turns.append(free := [])
        free.append(point)
    return turns


def _point(record: Record) -> dict[str, Any]:
    return {"lost": record.lost, "regained": record.regained, "trial": str(record.trial), "role": record.role}
