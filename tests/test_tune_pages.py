"""The pages and the figure of a search: each number in its place."""

from __future__ import annotations

from typing import Any

import pytest

from metaunlearn.report.charts import Frame, draw
from metaunlearn.settings import resolve
from metaunlearn.tuning.figure import figure
from metaunlearn.tuning.recipe import Tune, TuneRecipe
from metaunlearn.tuning.tables import Reported, frontier_page, report_page
from metaunlearn.tuning.trial import Lost, Outcome, Regained
from tiny_searches import SEARCH, record

RECIPE = TuneRecipe("tiny", "", resolve(Tune, SEARCH))


def test_the_frontiers_page_has_each_figure_in_its_column() -> None:
    outcome = {
        "before": 5.0, "lost": {"unrelated": 1.0, "related": 2.0, "fid": 3.0},
        "attacks": {"mild": {"mean": 10.0}, "hard": {"mean": 30.0}, "odd": {"mean": 20.0}},
    }  # fmt: skip
    settings = {"gamma2": 0.75, "inner_optimizer": "sgd", "inner_learning_rate": 0.05}
    page = frontier_page(RECIPE, [record(2, 30.0, 4.0, outcome=outcome, settings=settings)], "f.svg")
    cells = " | ".join(["2", "30.0", "4.0", "5.0", "1.0", "2.0", "3.0", "hard", "0.75", "sgd", "0.05"])
    assert f"| {cells} |" in page


def test_a_reports_page_has_each_figure_in_its_row() -> None:
    """Lost are 1 + 0.6 x 2 points; under the two attacks 20 % and 40 % come back."""
    few, many = (Regained(mean=mean, low=mean - 3, high=mean + 4, checkpoints={"1": mean}) for mean in (20.0, 40.0))
    lost, nothing = Lost(unrelated=1.0, related=2.0, fid=3.0), Lost(unrelated=0.0, related=0.0, fid=0.0)
    seen = Outcome(before=5.0, lost=lost, attacks={"a": few, "b": many})
    unseen = Outcome(before=6.0, lost=nothing, attacks={"c": few})
    page = report_page(RECIPE, [Reported(record(2, 12.0, 1.0), seen, unseen)], [0])
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| ")]
    assert [line[2].strip() for line in lines if "---" not in line[1]] == [
        "2", "20.0 [17, 24]", "40.0 [37, 44]", "40.0", "30.0", "20.0 [17, 24]", "20.0", "20.0",
        "2", "5.0", "1.0", "2.0", "3.0", "2.2",
    ]  # fmt: skip


def test_the_figure_shows_all_attacked_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given up is not drawn; across is what was lost, up what came back."""
    drawn: list[dict[str, Any]] = []

    def noted(spec: dict[str, Any], frame: Frame) -> str:
        drawn.append(spec)
        return draw(spec, frame)

    monkeypatch.setattr("metaunlearn.tuning.figure.draw", noted)
    figure(
        [
            record(0, 90.0, 0.5, "plain"), record(1, 20.0, 5.0, "start"), record(2, 30.0, 4.0),
            record(3, None, 30.0, status="given up"),
        ]
    )  # fmt: skip
    layers = drawn[0]["layer"]
    shown = {(row["trial"], row["lost"], row["regained"]) for part in layers for row in part["data"]["values"]}
    assert shown == {("0", 0.5, 90.0), ("1", 5.0, 20.0), ("2", 4.0, 30.0)}
    assert [row["trial"] for row in layers[0]["data"]["values"]] == ["1", "2"]
    assert layers[0]["encoding"]["x"]["scale"]["domain"] == [0, pytest.approx(5.4)]
