"""Charts: Vega-Lite specifications drawn to static SVG, with colours left to the page's style sheet.

Every colour is a CSS variable, so one drawing serves light, dark and print; the text stays text. A chart is about as
wide as a phone (``WIDTH`` CSS pixels), so that its letters keep their size there; wide pages set several side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert
from markupsafe import Markup

from metaunlearn.report.data import ModelName, Score

WIDTH = 344
"""Of every drawing, in CSS pixels."""

_LEFT, _TOP, _BOTTOM = 46, 8, 44
"""Fixed margins, so that drawings side by side align and no label depends on the fonts of the machine that drew it."""

LABEL_GAP = 9.0
"""Least distance of two labels at the end of curves, in percent of the vertical axis."""

_COLOURS = {"original": "var(--original)", "unlearn": "var(--unlearn)", "meta-unlearn": "var(--meta)"}
_SHAPES = {"original": "square", "unlearn": "circle", "meta-unlearn": "diamond"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_CONFIG: dict[str, Any] = {
    "aria": False,  # The figure around the drawing carries the description; marks would be read one by one.
    "background": "transparent",
    "font": _FONT,
    "autosize": "none",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "labelFontSize": 12,
        "labelPadding": 6,
        "titleColor": "var(--soft)",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": "var(--grid)",
        "domain": False,
        "ticks": False,
    },
}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model's score by finetuning step."""

    model: ModelName
    points: Sequence[tuple[int, Score]]
    """(step, score in percent), ascending."""


def spread(values: Sequence[float], gap: float = LABEL_GAP, low: float = 2.0, high: float = 98.0) -> list[float]:
    """``values`` moved apart to at least ``gap`` from one another and into [low, high], their order kept."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = [0.0] * len(values)
    floor = low
    for index in order:
        placed[index] = max(values[index], floor)
        floor = placed[index] + gap
    ceiling = high
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def relearning_chart(curves: Sequence[Curve], reference: float | None) -> Markup:
    """Scores in percent by finetuning step, with 95 % bands; ``reference`` is the original's level, dashed."""
    points = [
        {"step": step, "model": curve.model, "value": score.value, "low": score.low, "high": score.high}
        for curve in curves
        for step, score in curve.points
    ]
    steps = sorted({step for curve in curves for step, _ in curve.points})
    names = [curve.model for curve in curves]
    x = {
        "field": "step",
        "type": "quantitative",
        "title": "finetuning steps",
        "scale": {"domain": [0, steps[-1]], "nice": False},
        "axis": {"values": _ticks(steps), "grid": False, "labelFlush": False},
    }
    y = {
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [0, 100]},
        "axis": {"values": [0, 25, 50, 75, 100], "labelExpr": "datum.value + ' %'"},
    }
    colour = {
        "field": "model",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": names, "range": [_COLOURS[name] for name in names]},
    }
    shape = {**colour, "scale": {"domain": names, "range": [_SHAPES[name] for name in names]}}
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "datum.low != null"}],
            "mark": {"type": "area", "opacity": 0.16},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour},
        }
    ]
    if reference is not None:
        layers.append(
            {
                "data": {"values": [{"level": reference}]},
                "mark": {"type": "rule", "color": _COLOURS["original"], "strokeDash": [5, 4], "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "level"}},
            }
        )
    layers += [
        {
            "mark": {"type": "line", "strokeWidth": 2.5, "strokeJoin": "round"},
            "encoding": {"x": x, "y": {**y, "field": "value"}, "color": colour},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 46, "opacity": 1},
            "encoding": {"x": x, "y": {**y, "field": "value"}, "color": colour, "shape": shape},
        },
        *_end_labels(curves, reference, steps[-1], x, y),
    ]
    return draw({"data": {"values": points}, "layer": layers}, height=180, right=56)


def _ticks(steps: Sequence[int]) -> list[int]:
    """The checkpoints themselves, as far as their labels have room."""
    kept = [steps[-1]]
    for step in reversed(steps[:-1]):
        if kept[-1] - step >= 0.13 * steps[-1]:
            kept.append(step)
    return sorted({0, *kept} if kept[-1] >= 0.13 * steps[-1] else kept)


def _end_labels(
    curves: Sequence[Curve], reference: float | None, last: int, x: dict[str, Any], y: dict[str, Any]
) -> list[dict[str, Any]]:
    """The final values beside the ends of the curves, and the original's beside its line."""
    ends: list[tuple[str, int, float]] = [(curve.model, *_end(curve)) for curve in curves]
    if reference is not None:
        ends.append(("original", last, reference))
    heights = spread([value for _, _, value in ends])
    return [
        {
            "data": {"values": [{"step": step, "at": height, "label": f"{value:.0f}\N{NO-BREAK SPACE}%"}]},
            "mark": {
                "type": "text",
                "align": "left",
                "dx": 9,
                "baseline": "middle",
                "fontSize": 13,
                "fontWeight": "normal" if name == "original" else 600,
                "color": _COLOURS[name],
            },
            "encoding": {"x": {**x, "field": "step"}, "y": {**y, "field": "at"}, "text": {"field": "label"}},
        }
        for (name, step, value), height in zip(ends, heights, strict=True)
    ]


def _end(curve: Curve) -> tuple[int, float]:
    step, score = curve.points[-1]
    return step, score.value


def loss_chart(points: Sequence[tuple[float, float]]) -> Markup:
    """One loss (no unit, any sign) by training step."""
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": {"grid": False, "tickCount": 5}}
    y = {
        "field": "loss",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": {"tickCount": 4, "format": "~g"},
    }
    return draw(
        {
            "data": {"values": [{"step": step, "loss": loss} for step, loss in points]},
            "mark": {"type": "line", "strokeWidth": 1.75, "color": "var(--meta)"},
            "encoding": {"x": x, "y": y},
        },
        height=130,
        right=16,
    )


def draw(spec: dict[str, Any], *, height: int, right: int) -> Markup:
    """A Vega-Lite specification as inline SVG that scales with its figure; nothing is fetched.

    ``height`` of the plotting area and ``right`` margin in CSS pixels.
    """
    frame = {
        "width": WIDTH - _LEFT - right,
        "height": height,
        "padding": {"left": _LEFT, "top": _TOP, "right": right, "bottom": _BOTTOM},
    }
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    drawing = vl_convert.vegalite_to_svg({"$schema": schema, "config": _CONFIG, **frame, **spec}, allowed_base_urls=[])
    # Inline SVG needs no namespace; class names and the drawing library's roles would meet the page's own.
    drawing = re.sub(r' (?:xmlns(?::\w+)?|class|role|aria-\w+|pointer-events)="[^"]*"', "", drawing)
    drawing = re.sub(r"(\d+\.\d{2})\d+", r"\1", drawing)
    return Markup(drawing.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))
