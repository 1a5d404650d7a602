"""Pages of grids that were made in part, or that lack attacks or scores: no section is empty, no sentence wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_grids import GRID, found_with, made_up, write_results
from metaunlearn.bench.plan import states
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.results import Measured
from metaunlearn.report.grid.headline import headline
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


def test_figure_6_is_drawn_of_a_log_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    """The cosines 0.3 and 0.1 at the steps 0 and 50; the run was killed while it wrote step 100."""
    grid = resolve(Grid, {**GRID, "diagnosed": True})
    state = next(state for state in states(grid) if (state.model, state.attack) == ("meta-unlearn", "before"))
    found = found_with([], grid=grid, rows=[Measured(state, "measure-0", {})])
    lines = [{"step": step, "diagnostics": {"cosine": 0.3 - step / 250}} for step in (0, 50, 100)]
    lines.insert(1, {"step": 25, "loss": 1.0})
    log = "".join(json.dumps(line) + "\n" for line in lines)
    for cell, name, content in (
        ("measure-0", "cell.json", '{"needs": {"erase": "erase-0"}}'),
        ("erase-0", "log.jsonl", log[:-5]),
    ):
        (tmp_path / "cells" / cell).mkdir(parents=True)
        (tmp_path / "cells" / cell / name).write_text(content)
    (trend,) = trends(found, tmp_path)
    said = "regression line from +0.300 at step 0 to +0.100 at 50 (correlation with the step -1.00, 2 steps)."
    assert trend.description.endswith(said)


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
