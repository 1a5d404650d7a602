"""Pages of grids that were made in part, or that lack attacks or scores: no section is empty, no sentence wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_grids import GRID, changed, found_by, found_with, made_up, write_results
from metaunlearn.bench.plan import states
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.results import Measured
from metaunlearn.bench.state import State
from metaunlearn.bench.tables import ratio_tables
from metaunlearn.report.grid.headline import headline
from metaunlearn.report.grid.settings import resolved
from metaunlearn.report.grid.sheets import sheet
from metaunlearn.report.grid.survey import surveys
from metaunlearn.report.grid.trends import trends
from metaunlearn.report.page import build_report
from metaunlearn.settings import resolve


@pytest.mark.parametrize(
    ("scores", "attacks", "words"),
    [
        ((), GRID["attacks"], "Nothing is scored here, there are pictures to look at, so"),
        (("concept",), [], "No malicious finetuning is part of this grid, so"),
        (("concept",), [{"name": "benign", "data": "clean"}], "No malicious finetuning is part of this grid, so"),
        (("nsfw",), GRID["attacks"], "How often the concept is seen is not measured here, so"),
    ],
    ids=["pictures alone", "no attack", "a benign attack", "another score"],
)
def test_the_headline_says_why_nothing_is_compared(
    tmp_path: Path, scores: tuple[str, ...], attacks: list[dict[str, Any]], words: str
) -> None:
    """Every model was attacked where the grid has an attack."""
    grid = resolve(Grid, {**GRID, "attacks": attacks})
    score = {"value": 50.0, "low": 40.0, "high": 60.0, "n": 10, "hits": 5, "protocol": "p"}
    rows = [Measured(state, "measure-0", dict.fromkeys(scores, score)) for state in states(grid)]
    found = found_with([], grid=grid, rows=rows, rows_in_all=len(rows))
    assert headline(found).caveats == (f"{words} nothing is compared.",)
    (tmp_path / "results.json").write_text(json.dumps(found.to_dict()))
    page = build_report(tmp_path).read_text()
    assert "A comparison is" not in page
    assert ('<h2 id="tables"' in page) == bool(scores)
    assert ('<h2 id="relearning"' in page) == ("concept" in scores and bool(attacks))


def write_cells(bench: Path, files: dict[str, str]) -> None:
    """``files`` by their path below ``cells``."""
    for name, content in files.items():
        file = bench / "cells" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ((0.3, 0.1), "from +0.300 at step 0 to +0.100 at 50 (correlation with the step -1.00, 2 steps)."),
        ((0.2, 0.2), "from +0.200 at step 0 to +0.200 at 50 (correlation with the step +0.00, 2 steps)."),
    ],
    ids=["falling", "constant"],
)
def test_figure_6_is_drawn_of_a_log_whose_last_line_was_cut_off(
    tmp_path: Path, cosines: tuple[float, float], said: str
) -> None:
    """Of the steps 0 and 50; the run was killed while it wrote step 100. One model, one drawing, however often it was
    attacked."""
    grid = changed("concepts", 0, "seeds", to=[0], of={**GRID, "diagnosed": True})
    found = found_by(grid, lambda state: {} if state.model == "meta-unlearn" else None)
    assert len(found.rows) == 3
    lines = [{"step": step, "diagnostics": {"cosine": cosine}} for step, cosine in zip((0, 50), cosines, strict=True)]
    lines = [lines[0], {"step": 25, "loss": 1.0}, lines[1]]
    log = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "diagnostics": {"cos'
    needs = {f"{measured.cell}/cell.json": '{"needs": {"erase": "erase-0"}}' for measured in found.rows}
    write_cells(tmp_path, {**needs, "erase-0/log.jsonl": log})
    (trend,) = trends(found, tmp_path)
    assert trend.description == f"knife, esd-x-1, seed 0: regression line {said}"


@pytest.mark.parametrize(
    ("only", "said"), [("seed=0", "below, without its <code>--only</code>, goes"), ("seed=1", "below goes")]
)
def test_the_command_is_that_of_what_is_shown(tmp_path: Path, only: str, said: str) -> None:
    """Seed 0 is there; the last call may have been for another part of the grid."""
    results = made_up(tmp_path / "made")
    rows = [row for row in results.found().to_dict()["rows"] if row["seed"] == 0]
    write_results(tmp_path, results, rows=rows, asked={"only": [only], "use": ["base=m"]}, overrides=["steps=9"])
    page = build_report(tmp_path).read_text()
    part = " --only seed=0" if only == "seed=0" else ""
    assert f"<code>metaunlearn bench tiny --set steps=9{part} --use base=m --out DIR\n" in page
    assert said in page
    assert "<dt>base</dt><dd>m</dd>" in page


def test_settings_that_differ_are_told_of_each_variant_as_its_first_seed_has_them(tmp_path: Path) -> None:
    """Seeds change nothing else than what is drawn; a cell that was made again with other settings does."""
    grid = changed("variants", to=[{"name": "M = 1"}, {"name": "M = 2"}], of=GRID)
    found = found_by(grid, lambda state: {} if (state.model, state.step) == ("meta-unlearn", 0) else None)
    files = {}
    for measured in found.rows:
        state = measured.row
        settings = {"steps": 4, "inner_steps": int(state.variant[-1]) + 5 * state.seed}
        files[f"{measured.cell}/cell.json"] = json.dumps({"needs": {"erase": f"erase-{measured.cell}"}})
        files[f"erase-{measured.cell}/cell.json"] = json.dumps({"spec": {"settings": settings}})
    write_cells(tmp_path, files)
    (part,) = resolved(found, tmp_path)
    assert part.same == {"steps": 4}
    assert part.differs is not None
    assert part.differs.table.name == "settings-erase"
    assert part.differs.table.heads == ["concept", "method", "variant", "model", "inner_steps"]
    assert [[str(entry) for entry in row] for row in part.differs.table.rows] == [
        ["knife", "esd-x-1", f"M = {steps}", "meta-unlearn", str(steps)] for steps in (1, 2)
    ]


SURVEY = changed("attacks", 0, "steps", to=[1, 2], of=changed("concepts", 0, "seeds", to=[0], of=GRID))
SURVEY["attacks"] += [{"name": "rounded", "kind": "quantize"}]
SURVEYED = {("HRM-m", 1): 60.0, ("HRM-m", 2): 40.0, ("rounded", 8): 20.0, ("rounded", 4): 20.0}


def test_a_survey_tells_each_attack_where_it_does_most() -> None:
    """The finetuning after one step; of as much at 8 and at 4 bits, the stronger one. Prompts that are attacked show
    the concept in 90 % wherever they are: pictures go before them."""

    def scored(state: State) -> dict[str, float]:
        seen = SURVEYED.get((state.attack, int(state.step)), 0.0) / (2 if state.model == "meta-unlearn" else 1)
        return {"concept": seen, "asr": 90.0}

    found = found_by(SURVEY, scored)
    (survey,) = surveys(found, found.grid.concepts[0])
    assert survey.description == (
        "knife: esd-x-1. before any attack, unlearned: 0 %; before any attack, meta-unlearned: 0 %; "
        "HRM-m, 1 steps, unlearned: 60 %; HRM-m, 1 steps, meta-unlearned: 30 %; "
        "rounded, 4, unlearned: 20 %; rounded, 4, meta-unlearned: 10 %."
    )


def test_without_pictures_a_survey_tells_of_attacked_prompts() -> None:
    found = found_by(SURVEY, lambda state: {"asr": 90.0} if state.attack == "before" else None)
    (survey,) = surveys(found, found.grid.concepts[0])
    assert "before any attack, unlearned: 90 %" in survey.description


def test_a_column_that_says_nothing_is_no_name_of_a_row() -> None:
    """The table of ratios has one for variants, of which this grid has none."""
    (table,) = ratio_tables(found_by(GRID, lambda state: {"concept": 50.0}))
    narrow = sheet(table).table
    assert (table.named, narrow.named) == (2, 1)
    assert narrow.heads == ["method", "knife, seed 0", "knife, seed 1"]
