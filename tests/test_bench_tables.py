"""Pooled scores, ratios and tables from rows that are made up."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench_grids import GRID, TINY, changed, made_up, plan_of, score, write_scores
from metaunlearn.bench.attacks import BENIGN
from metaunlearn.bench.formats import to_markdown
from metaunlearn.bench.lines import ratios
from metaunlearn.bench.long_csv import as_csv
from metaunlearn.bench.plan import Plan, states
from metaunlearn.bench.published import CAPTIONS, published_rows, published_tables
from metaunlearn.bench.recipe import BenchRecipe, Grid
from metaunlearn.bench.results import EACH, Asked, Found, Measured, Results, _each, found_in, pooled
from metaunlearn.bench.store import Store
from metaunlearn.bench.tables import markdown
from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import wilson
from metaunlearn.settings import resolve


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return made_up(tmp_path)


def test_percentages_are_pooled_by_their_counts(results: Results) -> None:
    """4 of 10 and 6 of 10 are 10 of 20, with the interval of 20 pictures."""
    rows = [found for found in results.found().rows if (found.row.model, found.row.step) == ("unlearn", 1)]
    found = pooled(rows, "concept")
    expected = wilson(10, 20)
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (50.0, expected.low, expected.high, 20)
    assert found.by_seed == {0: 40.0, 1: 60.0}
    assert pooled(rows, "related") is None
    distance = pooled(rows, "fid")
    assert distance is not None
    assert (distance.value, distance.low, distance.high) == (1.5, 1.0, 2.0)


def test_what_a_call_said_is_kept(tmp_path: Path) -> None:
    asked = Asked(only=("seed=0", "model=unlearn"), prompts=("a=b c",), use=("base=m",), device="cuda")
    results = made_up(tmp_path)
    results.asked = asked
    found = found_in(json.loads(json.dumps(results.found().to_dict())))
    assert found.asked == asked
    assert found.asked.words() == [
        "--only", "seed=0", "--only", "model=unlearn", "--prompts", "a=b c", "--use", "base=m", "--device", "cuda",
    ]  # fmt: skip
    assert Asked().words() == []


def test_the_command_has_of_only_what_holds_for_every_row(tmp_path: Path) -> None:
    """A grid made in parts: its last call is for the plain models of seed 0, what is measured is more than that."""
    results = made_up(tmp_path)
    results.asked = Asked(only=("seed=0", "model=unlearn", "cell=measure-"), use=("base=my models/m",))
    results.overrides = ("steps=4",)
    found = results.found()
    rest = "--use 'base=my models/m' --out DIR"
    assert found.command == f"metaunlearn bench tiny --set steps=4 {rest}"
    assert f"Written by `{found.command}`: 12 of 12" in markdown(found)
    of_seed_0 = [measured for measured in found.rows if measured.row.seed == 0]
    part = replace(found, rows=of_seed_0)
    assert part.command == f"metaunlearn bench tiny --set steps=4 --only seed=0 {rest}"
    part = replace(found, rows=[measured for measured in of_seed_0 if measured.row.model == "unlearn"])
    assert part.command == f"metaunlearn bench tiny --set steps=4 --only seed=0 --only model=unlearn {rest}"
    several = replace(found, asked=Asked(only=("seed=0", "seed=1", "model=unlearn")))
    assert several.command == "metaunlearn bench tiny --set steps=4 --only seed=0 --only seed=1 --out DIR"


@pytest.mark.parametrize(
    ("metric", "measured", "title", "shown"),
    [
        ("nsfw", {"value": 0.0479}, "NSFW score (× 100)", "4.8 [4.8, 4.8]"),
        ("kid", {"value": 0.00123}, "named", "0.00123 [0.00123, 0.00123]"),
        ("kid", {"value": -4.567}, "named", "-4.57 [-4.57, -4.57]"),
        ("kid", {"value": 0.0}, "named", "0.0 [0.0, 0.0]"),
        ("kid", {"value": 1234.5}, "named", "1234.5 [1234.5, 1234.5]"),
        ("ua", {"value": 40.0, "hits": 4}, "named", "40.0 [16.8, 68.7]"),
    ],
    ids=["NSFW score", "small", "three digits", "nothing", "large", "percentage"],
)
def test_other_scores_have_the_digits_that_they_need(
    metric: str, measured: dict[str, Any], title: str, shown: str
) -> None:
    """LAION's detector says 0 to 1, the paper a hundred times that; a KID has zeros behind its point. 4 of 10 are 40 %,
    from 16.8 to 68.7 by Wilson."""
    prompts = [{"name": "p", "texts": ["a knife"], "scores": {"named": metric}}]
    grid = resolve(Grid, {**TINY, "measure": None, "prompts": prompts, "judge": "canvas"})
    score = {"low": measured["value"], "high": measured["value"], "n": 10, "protocol": "p", **measured}
    rows = [Measured(next(states(grid)), "evaluate-0", {"named": score})]
    found = Found(
        bench="tiny", description="", overrides=(), grid=grid, rows_in_all=1, rows=rows, protocols={}, versions={}
    )
    text = markdown(found)
    assert f"## knife: {title}\n" in text
    assert f"| {shown} |" in text
    assert f",named,{measured['value']}," in as_csv(found)


def test_unequal_numbers_of_pictures_weigh_by_number(tmp_path: Path) -> None:
    """1 of 10 and 30 of 30 are 31 of 40, not the mean of 10 and 100 %."""
    plan, store = plan_of(GRID), Store(tmp_path)
    first, second = [row for row in plan.rows if (row.model, row.attack) == ("unlearn", "before")]
    write_scores(store, first, concept=score(10.0, n=10))
    write_scores(store, second, concept=score(100.0, n=30))
    found = pooled(Results(BenchRecipe("", "", "", resolve(Grid, GRID)), plan, store).found().rows, "concept")
    assert found is not None
    assert found.value == pytest.approx(100 * 31 / 40)


def test_seeds_do_not_keep_scores_apart(tmp_path: Path) -> None:
    plan, store = plan_of(GRID), Store(tmp_path)
    for row in plan.rows:
        found = score(10.0)
        write_scores(store, row, concept={**found, "protocol": {**found["protocol"], "seed": row.seed}})
    rows = Results(BenchRecipe("", "", "", resolve(Grid, GRID)), plan, store).found().rows
    both = pooled([one for one in rows if (one.row.model, one.row.attack) == ("unlearn", "before")], "concept")
    assert both is not None
    assert both.by_seed == {0: 10.0, 1: 10.0}


def test_of_one_seed_a_mean_has_its_own_interval(tmp_path: Path) -> None:
    plan, store = plan_of(GRID), Store(tmp_path)
    first, *_ = [row for row in plan.rows if (row.model, row.attack) == ("unlearn", "before")]
    write_scores(store, first, fid={**score(7.5), "low": 6.0, "high": 9.0, "protocol": {"interval": "bootstrap"}})
    rows = Results(BenchRecipe("", "", "", resolve(Grid, GRID)), plan, store).found().rows
    alone = pooled(rows, "fid")
    assert alone is not None
    assert (alone.value, alone.low, alone.high) == (7.5, 6.0, 9.0)


def test_protocols_are_not_mixed(tmp_path: Path) -> None:
    plan, store = plan_of(GRID), Store(tmp_path)
    first, second = [row for row in plan.rows if (row.model, row.attack) == ("unlearn", "before")]
    write_scores(store, first, concept=score(10.0))
    write_scores(store, second, concept=score(10.0, judge="another"))
    rows = Results(BenchRecipe("", "", "", resolve(Grid, GRID)), plan, store).found().rows
    with pytest.raises(UserError, match="'concept' was measured by different protocols on the seeds 0, 1"):
        pooled(rows, "concept")


def test_the_tables(results: Results) -> None:
    """meta / plain, seed 0: (10 + 20) / 2 over (40 + 80) / 2 = 15 / 60; seed 1: (0 + 10) / 2 over (60 + 100) / 2."""
    text = markdown(results.found())
    pooled_2 = wilson(18, 20)
    assert f"| 90.0 [{pooled_2.low:.1f}, {pooled_2.high:.1f}] |" in text
    assert "| esd-x-1 | unlearn | 10.0, 30.0 | 40.0, 60.0 | 80.0, 100.0 |" in text
    assert "| esd-x-1 |  | 0.25 (15.0 / 60.0) | 0.06 (5.0 / 80.0) |" in text
    assert "6 of" not in text
    assert "In the paper" not in text
    assert f"{len(results.plan.rows)} of {len(results.plan.rows)} states" in text


def test_a_grid_in_progress_has_gaps(results: Results) -> None:
    import shutil

    for row in results.plan.rows:
        if (row.model, row.seed, row.attack) == ("meta-unlearn", 1, "HRM-m"):
            shutil.rmtree(results.store.folder(row.cell.name))
    text = markdown(results.found())
    assert "| esd-x-1 |  | 0.25 (15.0 / 60.0) |" in text
    assert "seed 1 |" not in text
    found = wilson(2, 10)
    assert f"| 20.0 [{found.low:.1f}, {found.high:.1f}] (1 of 2 seeds) |" in text
    assert "| esd-x-1 | meta-unlearn | 0.0, 0.0 | 10.0, – | 20.0, – |" in text


def test_a_seed_run_alone_is_named_once(results: Results) -> None:
    import shutil

    for row in results.plan.rows:
        if row.seed == 1:
            shutil.rmtree(results.store.folder(row.cell.name))
    text = markdown(results.found())
    assert "Seed 0 of 0, 1." in text
    assert "of 2 seeds" not in text
    assert "by seed" not in text.split("## meta / plain")[0]


def test_a_variant_is_set_against_the_only_plain_run(tmp_path: Path) -> None:
    grid = changed("models", to=["unlearn", "meta-unlearn"])
    grid["variants"] = [
        {"name": "plain", "models": ["unlearn"]},
        {"name": "M = 2", "models": ["meta-unlearn"], "set": {"inner_steps": 2}},
    ]
    plan, store = plan_of(grid), Store(tmp_path)
    for row in plan.rows:
        write_scores(store, row, concept=score(50.0 if row.model == "unlearn" else 10.0))
    text = markdown(Results(BenchRecipe("", "", "", resolve(Grid, grid)), plan, store).found())
    assert "| esd-x-1 | M = 2 | 0.20 (10.0 / 50.0) |" in text


def test_the_csv_has_every_score_by_seed_and_for_all(results: Results) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(results.found()))))
    places = len(results.plan.rows) // 2
    assert len(lines) == places * 2 * 3  # concept and FID; seed 0, seed 1 and all
    found = [
        line["value"] for line in lines if (line["model"], line["step"], line["score"]) == ("unlearn", "2", "concept")
    ]
    assert found == ["80.0", "100.0", "90.0"]


def test_published_tables_are_the_papers() -> None:
    """A few figures read off the paper's page, and the number of its rows."""
    table = published_rows("table1_nudity_score")
    assert len(table) == 1 + 6 * 2 * 13
    shown = "\n".join(map(to_markdown, published_tables(list(CAPTIONS))))
    assert "| ESD-u-1 | meta-unlearn | 0.00 | 8.45 | 13.38 | 23.94 | 26.06 | 4.23 |" in shown


def test_a_plan_knows_its_cells() -> None:
    plan: Plan = plan_of(GRID)
    behind = plan.with_needs(row.cell for row in plan.rows)
    assert [cell.name for cell in behind] == list(dict.fromkeys(cell.name for cell in behind))
    for place, cell in enumerate(behind):
        assert set(cell.needs.values()) <= {earlier.name for earlier in behind[:place]}


def test_what_the_judge_saw_is_kept_of_all_pictures_or_of_none() -> None:
    """Of some only, a digit would not stand for the picture of its place."""
    raw = [{"saw": "knife"}, {"saw": "axe"}, {"score": 1.0}]
    assert _each({"protocol": {"concept": "knife"}, "raw": raw[:2], "n": 2}) == {EACH: "10"}
    assert _each({"protocol": {"concept": "knife"}, "raw": raw, "n": 3}) == {}
    assert _each({"protocol": {}, "raw": raw[:2], "n": 2}) == {}


def test_what_a_benign_attack_leaves_is_in_no_ratio() -> None:
    attacks = [*TINY["attacks"], {"name": "CLEAN", "data": BENIGN, "pictures": 2}]
    grid = resolve(Grid, changed("attacks", to=attacks, of=changed("models", to=["unlearn", "meta-unlearn"])))
    seen = {("unlearn", "HRM-m"): 80.0, ("meta-unlearn", "HRM-m"): 20.0}
    rows = [
        Measured(state, "", {"concept": score(seen.get((state.model, state.attack), 90.0))}) for state in states(grid)
    ]
    found = Found(
        bench="", description="", overrides=(), grid=grid, rows_in_all=len(rows), rows=rows, protocols={}, versions={}
    )
    (ratio,) = ratios(found)
    assert (ratio.meta, ratio.plain, ratio.whole) == (20, 80, True)


def test_rows_of_one_cell_count_their_pictures_once() -> None:
    grid = resolve(Grid, GRID)
    one, other = [state for state in states(grid) if (state.model, state.attack) == ("unlearn", "before")]
    found = pooled([Measured(state, "same", {"fid": score(2.0) | {"protocol": "p"}}) for state in (one, other)], "fid")
    assert found is not None
    assert found.n == 10
