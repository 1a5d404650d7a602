"""Charts: Vega-Lite specifications drawn to static SVG, with colours left to the page's style sheet.

Every colour is a CSS variable, so one drawing serves light, dark and print; the text stays text. A chart is about as
wide as a phone, or half as wide, so that its letters keep their size there; wide pages set several side by side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import vl_convert
from markupsafe import Markup

from metaunlearn.report.data import ModelName, Score


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The size of a drawing and its fixed margins, in CSS pixels.

    Margins are fixed so that drawings side by side align and no label depends on the fonts of the machine that drew it.
    """

    width: int = 344
    height: int
    """Of the plotting area; all others are of the whole drawing."""
    left: int = 46
    right: int
    bottom: int = 44
    top: int = 8


WHOLE = Frame(height=180, right=56)
"""A chart of relearning by itself."""
SMALL = Frame(width=180, height=104, left=28, right=36, bottom=24)
"""One of many: half as wide, its axes without their titles and units."""
LOSS = Frame(height=130, left=58, right=16)

LABEL_GAP = 9.0
"""Least distance of two labels at the end of curves, in percent of the vertical axis of ``WHOLE``."""

ROW = 26
"""Pixels of one name in ``intervals_chart``, downwards ..."""
LETTER, MAX_LABEL = 6.6, 260
"""... and of a letter of it, and of all of them at most, across."""

_LIGHT = {
    "--ink": "#17181c", "--soft": "#5b5e66", "--grid": "#e9e9e4", "--original": "#60646c", "--unlearn": "#b8460e",
    "--meta": "#0b6b86",
}  # fmt: skip
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
    by: Sequence[str] = ()
    """Of each point, the attack that it is of; empty where all are of one."""


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


def relearning_chart(
    curves: Sequence[Curve], reference: float | None, *, frame: Frame = WHOLE, steps: Sequence[int] = ()
) -> Markup:
    """Scores in percent by finetuning step, with 95 % bands; ``reference`` is the original's level, dashed.

    ``frame`` is ``WHOLE`` or ``SMALL``; ``steps`` are those that the axis has room for beside the curves' own.
    """
    small = frame == SMALL
    unit = "" if small else " %"
    points = [
        {"step": step, "model": curve.model, "value": score.value, "low": score.low, "high": score.high}
        for curve in curves
        for step, score in curve.points
    ]
    steps = sorted({*steps, *(step for curve in curves for step, _ in curve.points)})
    names = [curve.model for curve in curves]
    x = {
        "field": "step",
        "type": "quantitative",
        "title": None if small else "finetuning steps",
        "scale": {"domain": [0, steps[-1]], "nice": False},
        "axis": {"values": _ticks(steps, 0.24 if small else 0.13), "grid": False, "labelFlush": False, "format": "d"},
    }
    y = {
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [0, 100]},
        "axis": {"values": [0, 50, 100] if small else [0, 25, 50, 75, 100], "labelExpr": f"datum.value + '{unit}'"},
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
        *_end_labels(curves, reference, steps[-1], x, y, frame),
    ]
    return draw({"data": {"values": points}, "layer": layers}, frame)


def _ticks(steps: Sequence[int], room: float) -> list[int]:
    """The checkpoints themselves, as far as their labels have room: each this share of the axis."""
    kept = [steps[-1]]
    for step in reversed(steps[:-1]):
        if kept[-1] - step >= room * steps[-1]:
            kept.append(step)
    return sorted({0, *kept} if kept[-1] >= room * steps[-1] else kept)


def _end_labels(
    curves: Sequence[Curve], reference: float | None, last: int, x: dict[str, Any], y: dict[str, Any], frame: Frame
) -> list[dict[str, Any]]:
    """The final values beside the ends of the curves, and the original's beside its line."""
    ends: list[tuple[str, int, float]] = [(curve.model, *_end(curve)) for curve in curves]
    if reference is not None:
        ends.append(("original", last, reference))
    heights = spread([value for _, _, value in ends], gap=LABEL_GAP * WHOLE.height / frame.height)
    unit = "" if frame == SMALL else "\N{NO-BREAK SPACE}%"
    return [
        {
            "data": {"values": [{"step": step, "at": height, "label": f"{value:.0f}{unit}"}]},
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
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": _step_axis([step for step, _ in points])}
    y = {
        "field": "loss",
        "type": "quantitative",
        "title": None,
        "scale": {"zero": False},
        "axis": _number_axis([loss for _, loss in points]),
    }
    return draw(
        {
            "data": {"values": [{"step": step, "loss": loss} for step, loss in points]},
            "mark": {"type": "line", "strokeWidth": 1.75, "color": "var(--meta)"},
            "encoding": {"x": x, "y": y},
        },
        LOSS,
    )


def trend_chart(points: Sequence[tuple[int, float]], line: tuple[float, float]) -> Markup:
    """A noisy quantity by training step, and its regression ``line``, by its height at the first and the last step."""
    ends = [{"step": points[end][0], "value": height} for end, height in zip((0, -1), line, strict=True)]
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": _step_axis([step for step, _ in points])}
    y = {"field": "value", "type": "quantitative", "title": None, "axis": _number_axis([value for _, value in points])}
    noisy = {"type": "line", "strokeWidth": 1, "opacity": 0.55, "color": "var(--meta)"}
    layers = [
        {"data": {"values": [{"step": step, "value": value} for step, value in points]}, "mark": noisy},
        {"data": {"values": ends}, "mark": {"type": "line", "strokeWidth": 2.5, "color": "var(--meta)"}},
    ]
    return draw({"layer": [{**layer, "encoding": {"x": x, "y": y}} for layer in layers]}, LOSS)


def _step_axis(steps: Sequence[float]) -> dict[str, Any]:
    """Whole steps: of a few of them each."""
    axis: dict[str, Any] = {"grid": False, "tickCount": 5, "format": "d"}
    first, last = math.ceil(min(steps)), math.floor(max(steps))
    return axis | ({"values": [*range(first, last + 1)]} if last - first <= 5 else {})


def _number_axis(values: Sequence[float]) -> dict[str, Any]:
    """As many digits as neighbours need to differ in, and no more letters than the left margin has room for."""
    span = max(values) - min(values)
    digits = min(6, max(3, math.ceil(math.log10(max(map(abs, values)) / span)) + 2)) if span else 3
    short = f"format(datum.value, '.{min(digits, 3)}~e')"
    return {
        "tickCount": 4,
        "labelExpr": f"datum.value != 0 && abs(datum.value) < 0.001 ? {short} : format(datum.value, '.{digits}~r')",
    }


def intervals_chart(scores: Sequence[tuple[str, ModelName, Score]]) -> Markup:
    """A row for each name: the scores of the models in percent, with their intervals, plain above meta."""
    names = list(dict.fromkeys(name for name, _, _ in scores))
    models = [model for model in _COLOURS if any(model == other for _, other, _ in scores)]
    values = [
        {"name": name, "model": model, "value": score.value, "low": score.low, "high": score.high}
        for name, model, score in scores
    ]
    left = min(MAX_LABEL, round(LETTER * max(map(len, names))))
    frame = Frame(width=560, height=ROW * len(names), left=left, right=24, top=8)
    x = {
        "type": "quantitative",
        "title": None,
        "scale": {"domain": [0, 100]},
        "axis": {"values": [0, 25, 50, 75, 100], "labelExpr": "datum.value + ' %'", "orient": "bottom"},
    }
    y = {
        "field": "name",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names},
        "axis": {"labelLimit": frame.left, "labelColor": "var(--ink)"},
    }
    beside = {"field": "model", "type": "nominal", "scale": {"domain": models}}
    colour = {**beside, "legend": None, "scale": {"domain": models, "range": [_COLOURS[model] for model in models]}}
    shape = {**beside, "legend": None, "scale": {"domain": models, "range": [_SHAPES[model] for model in models]}}
    place = {"y": y, "yOffset": beside, "color": colour}
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.45},
            "encoding": {**place, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 52, "opacity": 1},
            "encoding": {**place, "x": {**x, "field": "value"}, "shape": shape},
        },
    ]
    return draw({"data": {"values": values}, "layer": layers}, frame)


def as_file(drawing: Markup) -> str:
    """A drawing as a whole SVG file, in the light page's colours: a file has no style sheet to take them from."""
    text = re.sub(r"var\((--\w+)\)", lambda match: _LIGHT[match[1]], str(drawing))
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def draw(spec: dict[str, Any], frame: Frame) -> Markup:
    """A Vega-Lite specification as inline SVG that scales with its figure; nothing is fetched."""
    size = {
        "width": frame.width - frame.left - frame.right,
        "height": frame.height,
        "padding": {"left": frame.left, "top": frame.top, "right": frame.right, "bottom": frame.bottom},
    }
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    drawing = vl_convert.vegalite_to_svg({"$schema": schema, "config": _CONFIG, **size, **spec}, allowed_base_urls=[])
    # Inline SVG needs no namespace; class names and the drawing library's roles would meet the page's own.
    drawing = re.sub(r' (?:xmlns(?::\w+)?|class|role|aria-\w+|pointer-events)="[^"]*"', "", drawing)
    drawing = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), drawing)  # Not in its words.
    return Markup(drawing.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1))
