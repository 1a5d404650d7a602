"""The report's charts: what they show where and in which colour, and what they say at each step."""

from __future__ import annotations

import json
from typing import Any

import pytest

from metaunlearn.report.charts import SMALL, WHOLE, Curve, Frame, intervals_chart, relearning_chart, trend_chart
from metaunlearn.report.data import Score, Summary
from metaunlearn.report.reading import reading
from metaunlearn.report.sections import panels
from report_fixtures import invented_summary

CURVES = [
    Curve(model="unlearn", points=[(0, Score(2, 1, 4)), (50, Score(30, 20, 40)), (100, Score(60, 50, 70))]),
    Curve(model="meta-unlearn", points=[(0, Score(1, 0, 3)), (1, Score(2)), (95, Score(50)), (100, Score(58, 45, 65))]),
]
COLOURS = {"unlearn": "var(--unlearn)", "meta-unlearn": "var(--meta)"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The specifications of the charts that a test asks for; nothing is drawn, which would take longer."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("metaunlearn.report.charts.draw", lambda spec, frame: found.append(spec))
    return found


def colours_in(encoding: dict[str, Any]) -> dict[str, str]:
    scale = encoding["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


@pytest.mark.parametrize(
    ("frame", "heights", "unit"),
    [(WHOLE, [67, 58, 96], "\N{NO-BREAK SPACE}%"), (SMALL, [73.58, 58, 96], "")],
    ids=["whole", "small"],
)
def test_a_chart_of_relearning_shows_bands_reference_and_last_values(
    drawn: list[dict[str, Any]], frame: Frame, heights: list[float], unit: str
) -> None:
    """Labels of 60 and 58 % are moved apart by 9 % of the large chart's height, by as many pixels of the small one."""
    relearning_chart(CURVES, 96.0, frame=frame)
    band, rule, line, _, *labels = drawn[0]["layer"]
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("low", "high")
    assert rule["data"]["values"] == [{"level": 96.0}]
    assert line["encoding"]["x"]["scale"]["domain"] == [0, 100]
    if frame == WHOLE:
        assert line["encoding"]["x"]["axis"]["values"] == [1, 50, 100]
    assert colours_in(line["encoding"]) == COLOURS
    ends = [(label["data"]["values"][0], label["mark"]["color"]) for label in labels]
    assert [(end["step"], end["label"], colour) for end, colour in ends] == [
        (100, f"60{unit}", "var(--unlearn)"), (100, f"58{unit}", "var(--meta)"), (100, f"96{unit}", "var(--original)"),
    ]  # fmt: skip
    assert [end["at"] for end, _ in ends] == pytest.approx(heights, abs=0.01)


def test_a_chart_ends_at_its_last_step(drawn: list[dict[str, Any]]) -> None:
    relearning_chart([Curve(model="unlearn", points=[(0, Score(2)), (40, Score(5))])], None)
    assert {tuple(layer["encoding"]["x"]["scale"]["domain"]) for layer in drawn[0]["layer"]} == {(0, 40)}


def test_a_regression_line_goes_from_the_first_step_to_the_last(drawn: list[dict[str, Any]]) -> None:
    trend_chart([(10, 0.1), (20, 0.3), (30, 0.2)], (0.15, 0.25))
    assert drawn[0]["layer"][1]["data"]["values"] == [{"step": 10, "value": 0.15}, {"step": 30, "value": 0.25}]


def test_a_chart_of_intervals_draws_them_whole_in_their_models_colours(drawn: list[dict[str, Any]]) -> None:
    intervals_chart([("a", "meta-unlearn", Score(20, 10, 30)), ("a", "unlearn", Score(50, 40, 60))])
    rule, point = (layer["encoding"] for layer in drawn[0]["layer"])
    assert (rule["x"]["field"], rule["x2"]["field"], point["x"]["field"]) == ("low", "high", "value")
    assert colours_in(rule) == colours_in(point) == COLOURS


def test_what_a_chart_says_lies_where_the_chart_is() -> None:
    """46, 8, 242 and 180 of 344 x 232 pixels."""
    said = json.loads(reading(CURVES, WHOLE, 100))
    assert said["plot"] == [0.1337, 0.0345, 0.7035, 0.7759]
    assert (said["last"], [step["at"] for step in said["steps"]]) == (100, [0, 1, 50, 95, 100])
    assert said["steps"][1]["rows"] == [["meta-unlearn", "Meta-unlearned", "2.0 %", "", ""]]
    assert said["steps"][4]["rows"] == [
        ["unlearn", "Unlearned", "60.0 %", "50.0–70.0", ""],
        ["meta-unlearn", "Meta-unlearned", "58.0 %", "45.0–65.0", ""],
    ]


def test_a_panel_of_related_concepts_is_of_them_alone() -> None:
    panel = panels(Summary.model_validate(invented_summary()), "related")[0]
    assert "The original is at 93 %." in panel.description
    assert [(step, [score.value for score in row if score]) for step, row in (panel.table[0], panel.table[-1])] == [
        (0, [91.0, 89.0]), (100, [85.0, 48.0]),
    ]  # fmt: skip
    assert json.loads(panel.reading)["last"] == 100
