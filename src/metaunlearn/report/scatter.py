"""Layers of a scatter plot, as Vega-Lite has them: points, and words beside them, over two axes of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
"""What is drawn: one thing each, its numbers by the names of the axes' fields."""
Spec = dict[str, Any]
"""A part of a specification."""


def axis(field: str, title: str, *, scale: Spec, **ticks: Any) -> Spec:
    """An axis with the numbers ``field`` of each row; ``ticks`` say where it has marks."""
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": ticks}


def percent_axis(field: str, title: str) -> Spec:
    """One from 0 to 100."""
    return axis(field, title, scale={"domain": [0, 100]}, values=[0, 25, 50, 75, 100])


def layer(rows: Rows, mark: Spec, encoding: Spec) -> Spec:
    """``rows`` in one kind of mark."""
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def points(rows: Rows, place: Spec, colour: str, size: int, *, shape: str = "circle", opacity: float = 1.0) -> Spec:
    """A point for each row, ``size`` square pixels large, at ``place``: ``x`` and ``y``."""
    mark = {"type": "point", "filled": True, "size": size, "opacity": opacity, "color": colour, "shape": shape}
    return layer(rows, mark, place)


def words(rows: Rows, place: Spec, field: str, colour: str, *, dx: int, dy: int, align: str = "left") -> Spec:
    """What each row has as ``field``, so many pixels beside and below its point."""
    mark = {
        "type": "text", "align": align, "dx": dx, "dy": dy, "fontSize": 12, "fontWeight": 600, "color": colour
    }  # fmt: skip
    return layer(rows, mark, {**place, "text": {"field": field}})
