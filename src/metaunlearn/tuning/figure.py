"""The frontier as a drawing of its own, ``frontier.svg``: what was lost across, what comes back upwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaunlearn.report.charts import Frame, as_file, draw
from metaunlearn.tuning.records import BASELINES, Record, frontier

FRAME = Frame(width=560, height=300, left=56, right=24, top=24)
LABELS = {"plain": "plain", "default": "default"}


def figure(records: Sequence[Record]) -> str:
    """A whole SVG file; trials that failed or were given up are not in it. Those of ``start`` have their numbers."""
    drawn = [record for record in records if record.status == "complete"]
    best = frontier(records)
    starts = [_point(record) for record in drawn if record.role == "start" and record not in best]
    points = [_point(record) for record in drawn if record.role not in BASELINES]
    marked = [_point(record) for record in drawn if record.role in BASELINES]
    # A baseline's settings may come again, under its name then.
    named = {(record.lost, record.regained) for record in drawn if record.role in BASELINES}
    numbered = [_point(record) for record in best if (record.lost, record.regained) not in named]
    limit = max([1.0, *(point["lost"] for point in [*points, *marked])])
    x = {
        "field": "lost",
        "type": "quantitative",
        "title": "lost before any attack (points of unrelated concepts)",
        "scale": {"domain": [0, limit * 1.08], "nice": False},
        "axis": {"grid": False, "tickCount": 6},
    }
    y = {
        "field": "regained",
        "type": "quantitative",
        "title": "shows the concept under the worst attack (%)",
        "scale": {"domain": [0, 100]},
        "axis": {"values": [0, 25, 50, 75, 100]},
    }
    place = {"x": x, "y": y}
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "color": "var(--meta)"}
    layers: list[dict[str, Any]] = [
        _layer(points, _mark("var(--original)", 28, opacity=0.45), place),
        _layer(starts, _text("var(--original)", -9), {**place, "text": {"field": "trial"}}),
        _layer([_point(record) for record in best], line, place),
        _layer(
            [_point(record) for record in best],
            _mark("var(--meta)", 64),
            place,
        ),
        _layer(
            numbered,
            _text("var(--meta)", -11),
            {**place, "text": {"field": "trial"}},
        ),
        _layer(
            marked,
            _mark("var(--unlearn)", 110, shape="diamond"),
            place,
        ),
        _layer(marked, _text("var(--unlearn)", -13), {**place, "text": {"field": "label"}}),
    ]
    return as_file(draw({"layer": layers}, FRAME))


def _point(record: Record) -> dict[str, Any]:
    return {
        "lost": record.lost, "regained": record.regained, "trial": str(record.trial),
        "label": LABELS.get(record.role, ""),
    }  # fmt: skip


def _layer(values: list[dict[str, Any]], mark: dict[str, Any], encoding: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def _mark(colour: str, size: int, *, opacity: float = 1.0, shape: str = "circle") -> dict[str, Any]:
    return {"type": "point", "filled": True, "size": size, "opacity": opacity, "color": colour, "shape": shape}


def _text(colour: str, dy: int) -> dict[str, Any]:
    return {"type": "text", "align": "left", "dx": 6, "dy": dy, "fontSize": 12, "fontWeight": 600, "color": colour}
