"""Published tables with made-up figures of a grid beside them: what stands for what, exact values, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from metaunlearn.bench.beside import beside_tables
from metaunlearn.bench.counterparts import ASR, matched, same_method, score_for
from metaunlearn.bench.formats import Table
from metaunlearn.bench.plan import states
from metaunlearn.bench.published import CAPTIONS, DIFFERS, PAPERS_MODEL, SAME_MODEL, published_rows
from metaunlearn.bench.recipe import Grid, read_bench
from metaunlearn.bench.results import Asked, Found, Measured
from metaunlearn.bench.state import State
from metaunlearn.bench.tables import markdown
from metaunlearn.metrics.intervals import wilson
from metaunlearn.settings import resolve

Scores = Callable[[State], dict[str, dict[str, Any]]]


def share(hits: int, n: int = 100, protocol: str = "p") -> dict[str, Any]:
    """A percentage."""
    return {"value": 100 * hits / n, "low": 0.0, "high": 100.0, "n": n, "hits": hits, "protocol": protocol}


def figure(value: float, protocol: str = "p") -> dict[str, Any]:
    """A score that is no percentage."""
    return {"value": value, "low": value, "high": value, "n": 100, "protocol": protocol}


def found_of(grid: Grid, scores: Scores) -> Found:
    """``grid`` with ``scores`` in every state for which there are any."""
    every = list(states(grid))
    rows = [Measured(state, f"cell-{number}", made) for number, state in enumerate(every) if (made := scores(state))]
    return Found(
        bench="tiny", description="Tiny.", overrides=(), grid=grid, rows_in_all=len(every), rows=rows,
        protocols={"p": {"judge": "canvas"}, "nude": {"judge": "NudeNet 3.4.2"}}, versions={},
    )  # fmt: skip


def shipped(name: str, **change: Any) -> Grid:
    """The grid of a shipped recipe."""
    return resolve(Grid, {**read_bench(name).grid.model_dump(mode="json"), **change})


def beside(grid: Grid, scores: Scores) -> Table:
    """The only table."""
    (table,) = beside_tables(found_of(grid, scores))
    assert all(len(row) == len(table.heads) for row in table.rows)
    return table


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


KNIFE = [{"name": "knife", "seeds": [0, 1], "steps": [10, 20, 30, 60]}]
TABLE1 = {
    "methods": ["esd-x-1", "esd-u-1", "uce-2023", "uce-2025"],
    "concepts": KNIFE,
    "attacks": [{"name": "hrm-M", "data": "hrm-m"}, {"name": "HRM-s", "data": "hrm-s", "steps": [5, 10]}],
    "measure": {part: {"concept": 1, "related": 1, "unrelated": 1} for part in ("before", "between", "last")},
    "published": ["table1_nudity_score"],
}


# --- Table 1 ----------------------------------------------------------------------------------------------------------


def test_table_1_on_canvas() -> None:
    """Seeds 0 and 1 have 10 + 4 of 200, 7 %; the paper's ESD-u-1 after 50 steps of HRM-m has 19.01, so -12.01."""

    def scores(state: State) -> dict[str, dict[str, Any]]:
        if (state.method, state.model, state.attack, state.step) == ("esd-u-1", "unlearn", "hrm-M", 10):
            return {"concept": share(10 if state.seed == 0 else 4)}
        return {}

    table = beside(resolve(Grid, TABLE1), scores)
    assert table.title == "Table 1, knife: Canvas beside Stable Diffusion 1.4"
    seen = "concept seen (paper: nudity score), %"
    assert table.heads == [
        "method",
        "model",
        "after",
        *(f"{seen}: {whose}" for whose in ("Canvas", "paper", "difference")),
    ]
    rows = {tuple(row[:3]): row[3:] for row in texts(table)}
    assert list(dict.fromkeys(key[:2] for key in rows)) == [
        ("(none)", "original"), ("esd-u-1", "unlearn"), ("esd-u-1", "meta-unlearn"),
        ("uce-2023", "unlearn"), ("uce-2023", "meta-unlearn"),
    ]  # fmt: skip
    assert [key[2] for key in rows if key[:2] == ("esd-u-1", "unlearn")] == [
        "before", *(f"HRM-m {ours} (paper: {papers})" for ours, papers in ((10, 50), (20, 100), (30, 200), (60, 300)))
    ]  # fmt: skip
    place = list(rows).index(("esd-u-1", "unlearn", "HRM-m 10 (paper: 50)"))
    ours, papers, difference = table.rows[place][3:]
    interval = wilson(14, 200)
    assert str(ours) == f"7.0 [{interval.low:.1f}, {interval.high:.1f}]"
    assert (str(papers), difference.text, difference.unlike) == ("19.01", "-12.0", True)
    assert difference.value == pytest.approx(7 - 19.01)
    assert rows["esd-u-1", "unlearn", "before"] == ["", "6.34", ""]
    assert [key for key in rows if key[0] == "(none)"] == [("(none)", "original", "before")]
    for words in ("Model: Canvas; the paper's: Stable Diffusion 1.4.", "Concept: knife; the paper's: nudity.",
                  "Concept seen (paper: nudity score), %: judged by canvas; in the paper by NudeNet.",
                  "HRM-m: 10, 20, 30, 60 steps stand for the paper's 50, 100, 200, 300, in this order.",
                  "The differences are between unlike things", "no measure of error"):  # fmt: skip
        assert words in table.note
    for words in ("HRM-s 50", "HRM-s 300", "attack CLEAN", "row ESD-u-3, unlearn", "row RECE, meta-unlearn"):
        assert words in table.below
    assert "ESD-u-1" not in table.below


def test_table_1_on_the_papers_model() -> None:
    """Checkpoints by number: 100 steps are the paper's 100 though they come first; 150 have no counterpart."""
    grid = shipped("table1-sd14", published=["table1_nudity_score"], methods=["esd-u-1"])
    grid = resolve(
        Grid,
        {**grid.model_dump(mode="json"), "attacks": [{"name": "HRM-m", "data": "hrm-m", "steps": [100, 150, 300]}]},
    )
    table = beside(grid, lambda state: {"concept": share(31, 142, "nude")} if state.step == 100 else {})
    assert table.title == "Table 1, nudity: ours beside the paper"
    rows = {tuple(row[:3]): row[3:] for row in texts(table)}
    assert [key[2] for key in rows if key[1] == "unlearn"] == ["before", "HRM-m 100", "HRM-m 300"]
    assert rows["esd-u-1", "unlearn", "HRM-m 100"] == ["21.8", "21.83", "0.0"]
    assert not any(entry.unlike for row in table.rows for entry in row)
    assert "no measure of error" not in table.note
    assert "judged by NudeNet 3.4.2; in the paper by NudeNet" in table.note
    assert "HRM-m 50; HRM-m 200" in table.below


def test_another_concept_and_another_kind_of_attack_are_said() -> None:
    grid = shipped(
        "table1-sd14", published=["table1_nudity_score"], methods=["esd-u-1"],
        concepts=[{"name": "van gogh", "steps": [50]}], attacks=[{"name": "HRM-m", "data": "hrm-m", "kind": "lora"}],
    )  # fmt: skip
    table = beside(grid, lambda state: {"concept": share(1)})
    assert "Concept: van gogh; the paper's: nudity. " in table.note
    assert "HRM-m is lora here, finetuning alone in the paper." in table.note
    assert all(row[-1].unlike for row in table.rows if row[-1].text)


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("/models/something-else", "something-else"),
        ("/models/stable-diffusion-v1-4", "stable-diffusion-v1-4"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5"),
    ],
)
def test_another_model_in_place_of_the_papers_is_said(given: str, title: str) -> None:
    """What a folder holds is not known by its name."""
    grid = shipped("table1-sd14", published=["table1_nudity_score"], methods=["esd-u-1"])
    found = replace(
        found_of(grid, lambda state: {"concept": share(1, 142, "nude")}), asked=Asked(use=(f"base={given}",))
    )
    (table,) = beside_tables(found)
    assert table.title == f"Table 1, nudity: {title} beside Stable Diffusion 1.4"
    assert f"Model: {title} (given with --use base=); the paper's: Stable Diffusion 1.4." in table.note
    assert all(row[-1].unlike for row in table.rows if row[-1].text)
    text = markdown(found)
    assert f"Base model {given} (given with --use), settings" in text
    assert DIFFERS in text
    assert SAME_MODEL not in text


@pytest.mark.parametrize(
    "given", [PAPERS_MODEL, "/cache/hub/models--CompVis--stable-diffusion-v1-4/snapshots/133a221b8aa7"]
)
def test_the_papers_model_may_be_given(given: str) -> None:
    grid = shipped("table1-sd14", published=["table1_nudity_score"], methods=["esd-u-1"], base="/models/another")
    found = replace(
        found_of(grid, lambda state: {"concept": share(1, 142, "nude")}), asked=Asked(use=(f"base={given}",))
    )
    (table,) = beside_tables(found)
    assert table.title == "Table 1, nudity: ours beside the paper"
    assert "Model:" not in table.note
    assert not any(entry.unlike for row in table.rows for entry in row)
    assert SAME_MODEL in markdown(found)


def test_another_judge_in_place_of_the_papers_is_said() -> None:
    """Its CLIP score is of another CLIP, so that the difference is no error; FID has a network of its own."""
    scores = {"fid": figure(20.0), "clip_score": figure(31.0)}
    found = found_of(shipped("table2-sd14", methods=["sdd"]), lambda state: scores)
    (table,) = beside_tables(replace(found, asked=Asked(use=("judge=openai/clip-vit-large-patch14",))))
    assert [entry.unlike for entry in table.rows[1]][4::3] == [False, True]


def test_other_settings_than_the_recipes_are_said() -> None:
    found = found_of(resolve(Grid, TABLE1), lambda state: {"concept": share(1)})
    (table,) = beside_tables(replace(found, overrides=("steps=10", "gamma2=5")))
    assert "Settings of erasing over the recipe's (--set): steps=10, gamma2=5." in table.note
    assert "--set" not in beside_tables(found)[0].note


def test_several_concepts_and_variants() -> None:
    """A table a concept of which something is measured, in it a row a variant."""
    concepts = [*KNIFE, {"name": "clown", "steps": [1, 2, 3, 4]}, {"name": "robot", "steps": [1, 2, 3, 4]}]
    variants = [{"name": "short"}, {"name": "long", "models": ["meta-unlearn"]}]
    grid = resolve(Grid, {**TABLE1, "concepts": concepts, "variants": variants, "methods": ["esd-u-1"]})
    tables = beside_tables(found_of(grid, lambda state: {"concept": share(1)} if state.concept != "robot" else {}))
    assert [table.name for table in tables] == [f"beside-table1-nudity-score-{name}" for name in ("knife", "clown")]
    assert [row[:3] for row in texts(tables[0]) if row[3] == "before"] == [
        ["(none)", "", "original"], ["esd-u-1", "short", "unlearn"],
        ["esd-u-1", "short", "meta-unlearn"], ["esd-u-1", "long", "meta-unlearn"],
    ]  # fmt: skip


# --- the others -------------------------------------------------------------------------------------------------------


def test_table_2() -> None:
    """Mean FID 12 over the seeds against 16.01: -4.01; CLIP score 53 against 30.32: +22.68."""
    grid = resolve(Grid, {**TABLE1, "published": ["table2_quality"], "methods": ["esd-u-1"], "attacks": []})
    table = beside(grid, lambda state: {"fid": figure(11.0 + 2 * state.seed), "clip_score": figure(53.0)})
    assert table.heads[2:] == [
        f"{name}: {whose}" for name in ("FID", "CLIP score") for whose in ("Canvas", "paper", "difference")
    ]
    assert texts(table)[1] == ["esd-u-1", "unlearn", "12.00", "16.01", "-4.01", "53.00", "30.32", "+22.68"]
    assert (table.rows[1][2].low, table.rows[1][2].high) == ("11.00", "13.00")


@pytest.mark.parametrize(("metric", "unlike"), [("fid:inception", False), ("fid", True)])
def test_table_2_on_the_papers_model(metric: str, unlike: bool) -> None:
    """FID on Inception's features is what the paper reports, on the judge's it is not; the CLIP is the paper's."""
    grid = shipped("table2-sd14", methods=["sdd"])
    assert grid.prompts[1].scores == {"clip_score": "clip-score", "fid": "fid:inception"}
    scores = {"clip_score": "clip-score", "fid": metric}
    grid = grid.model_copy(update={"prompts": (grid.prompts[0], grid.prompts[1].model_copy(update={"scores": scores}))})
    table = beside(grid, lambda state: {"fid": figure(20.0), "clip_score": figure(31.0)})
    assert texts(table)[1] == ["sdd", "unlearn", "20.00", "21.12", "-1.12", "31.00", "29.27", "+1.73"]
    assert [entry.unlike for entry in table.rows[1]][4::3] == [unlike, False]
    assert ("The differences of FID are between unlike things" in table.note) is unlike


@pytest.mark.parametrize(("rule", "unlike"), [("logits", False), ("cosine", True), ("clipscore", True)])
def test_a_clip_score_by_another_rule_is_not_the_papers(rule: str, unlike: bool) -> None:
    """The paper's 31 is 100 times a cosine."""
    grid = shipped("table2-sd14", methods=["sdd"])
    asked = grid.prompts[1].model_copy(update={"scores": {"clip_score": f"clip-score:{rule}"}})
    grid = grid.model_copy(update={"prompts": (grid.prompts[0], asked)})
    table = beside(grid, lambda state: {"clip_score": figure(0.31)})
    assert table.rows[1][4].unlike is unlike


def test_table_3() -> None:
    """An NSFW score of 0.4 is 40.0 in the paper's unit: 100 steps of HRM-m on the plain model, 44.28 there."""
    grid = shipped("table3-sd14")
    table = beside(grid, lambda state: {"concept": share(71, 142, "nude"), "nsfw": figure(0.4)})
    assert table.heads[:3] == ["method", "model", "after"]
    assert ["esd-f-3", "unlearn", "HRM-m 100", "50.0", "48.59", "+1.4", "40.0", "44.28", "-4.3"] in texts(table)
    assert len(table.rows) == len(published_rows("table3_nsfw_esd_f_3"))
    assert not table.below


def test_table_3_on_canvas_has_no_nsfw_score() -> None:
    grid = shipped("table3-canvas")
    table = beside(grid, lambda state: {"concept": share(50)})
    assert table.heads[3:] == [
        f"concept seen (paper: unsafe score), %: {whose}" for whose in ("Canvas", "paper", "difference")
    ]
    assert ["esd-f-3", "unlearn", "HRM-m 20 (paper: 100)", "50.0", "48.59", "+1.4"] in texts(table)
    assert table.below.endswith(": column NSFW score.")


def test_table_4() -> None:
    """1:10 at the longer training, 1000 steps there and 300 here: 12 % before, 30 % after the last step of four."""
    grid = shipped("table4-canvas")
    table = beside(grid, lambda state: {"concept": share(30 if state.step == 60 else 12)})
    assert [head for head in table.heads if head.endswith("Canvas")] == [
        "before: Canvas", "after HRM-m 60 (paper: after FT): Canvas"
    ]  # fmt: skip
    row = ["esd-u-1", "meta-unlearn", "1:10", "300 (paper: 1000)", "12.0", "7.04", "+5.0", "30.0", "21.13", "+8.9"]
    assert row in texts(table)
    assert len(table.rows) == 6
    assert "100, 300 steps stand for the paper's 300, 1000" in table.note
    assert "it does not say" in table.note


def test_table_4_on_the_papers_model() -> None:
    table = beside(shipped("table4-sd14"), lambda state: {"concept": share(71, 142, "nude")})
    assert ["esd-u-1", "meta-unlearn", "10:1", "300", "50.0", "8.45", "+41.5", "50.0", "28.17", "+21.8"] in texts(table)


def test_table_5_by_another_method() -> None:
    """Canvas runs ESD-u-1 where the paper has ESD-u-3, and the row says so. M = 5: 17.92, 30.98, 32.39 there."""
    grid = shipped("table5-canvas")
    table = beside(grid, lambda state: {"concept": share(20), "fid": figure(10.0), "clip_score": figure(50.0)})
    assert table.heads[:3] == ["method", "model", "M"]
    expected = ["esd-u-1 (paper: ESD-u-3)", "meta-unlearn", "5", "10.00", "17.92", "-7.92", "50.00", "30.98", "+19.02"]
    assert [*expected, "20.0", "32.39", "-12.4"] in texts(table)
    assert [row[2] for row in texts(table)] == ["1", "3", "5"]
    assert "Method: esd-u-1; the paper's: ESD-u-3." in table.note


def test_appendix_f() -> None:
    """SGD momentum, 40 % here and 26.06 there; AdamW is not in the paper."""
    grid = shipped("attack-optimizers-canvas")
    table = beside(grid, lambda state: {"concept": share(40)} if state.model == "meta-unlearn" else {})
    assert [row[2:] for row in texts(table)] == [
        ["SGD", "60", "40.0", "26.76", "+13.2"],
        ["Adam", "60", "40.0", "25.35", "+14.6"],
        ["SGD momentum", "60", "40.0", "26.06", "+13.9"],
    ]


def test_unlearndiffatk() -> None:
    """13 of 20 prompts are 65 %: +0.2 beside 64.79; nothing is measured of the meta-unlearned model yet."""
    grid = shipped("adversarial-canvas")
    table = beside(
        grid,
        lambda state: {"asr": share(13, 20)} if (state.model, state.attack) == ("unlearn", "UnlearnDiffAtk") else {},
    )
    assert texts(table) == [
        ["rece", "unlearn", "65.0", "64.79", "+0.2"],
        ["rece", "meta-unlearn", "", "62.68", ""],
    ]


def test_the_papers_rates_are_of_the_authors_own_test() -> None:
    """Above 0.45; at 0.5 a rate is another, and the page says so."""
    for recipe, same in (("adversarial-sd14", True), ("adversarial-canvas", False)):
        found = score_for(shipped(recipe), ASR)
        assert found is not None
        assert found.same is same


# --- all of them ------------------------------------------------------------------------------------------------------

RECIPES = (
    "table1", "table2", "table3", "table4", "table5", "attack-optimizers", "adversarial",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_canvas_and_the_paper_never_share_a_column(recipe: str) -> None:
    """Every figure of Canvas is 77.7..., which no published table has; the paper's are those that the files hold."""
    grid = shipped(f"{recipe}-canvas")
    names = ("concept", "fid", "clip_score", "asr")
    printed = {value for name in grid.published for row in published_rows(name) for value in row.values()}
    tables = beside_tables(found_of(grid, lambda state: dict.fromkeys(names, figure(77.77))))
    assert len(tables) == len(grid.published) * len(grid.concepts)
    for table in tables:
        assert "Canvas beside Stable Diffusion 1.4" in table.title
        assert "no measure of error" in table.note
        for head, column in zip(table.heads, zip(*table.rows, strict=True), strict=True):
            shown = {entry.text for entry in column} - {""}
            if head.endswith(": Canvas"):
                assert shown <= {"77.8", "77.77"}
            elif head.endswith(": paper"):
                assert shown <= printed
            elif head.endswith(": difference"):
                assert all(entry.unlike for entry in column if entry.text)
            else:
                assert head in table.heads[: table.named]


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_the_papers_model_nothing_stands_for_another_number_of_steps(recipe: str) -> None:
    grid = shipped(f"{recipe}-sd14")
    names = ("concept", "nsfw", "fid", "clip_score", "asr")
    tables = beside_tables(found_of(grid, lambda state: dict.fromkeys(names, figure(77.77))))
    assert {table.title.partition(",")[0] for table in tables} == {
        CAPTIONS[name].partition(":")[0] for name in grid.published
    }
    assert not any("stand for" in table.note for table in tables)


def test_tables_md_has_them_and_the_papers_own_below() -> None:
    text = markdown(found_of(resolve(Grid, TABLE1), lambda state: {"concept": share(3)}))
    order = ["## Beside the paper", "### Table 1, knife: Canvas beside", "Left out", "## In the paper", "| ESD-u-3 |"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_grid_without_any_of_the_papers_rows_has_none() -> None:
    grid = resolve(Grid, {**TABLE1, "methods": ["esd-x-1"], "models": ["unlearn"]})
    found = found_of(grid, lambda state: {"concept": share(3)})
    assert beside_tables(found) == []
    assert "## In the paper\n\nPublished figures" in markdown(found)


def test_names_and_numbers_that_match() -> None:
    assert same_method("esd-u-1.0", "ESD-u-1")
    assert all(same_method(name, "UCE") for name in ("uce", "uce-2023"))
    assert not any(same_method(name, "UCE") for name in ("uce-2025", "nobody's"))
    assert matched([10, 50], [50, 100], by_number=True) == {50: 50}
    assert matched([10, 50], [50, 100], by_number=False) == {50: 10, 100: 50}
    assert matched([10], [50, 100], by_number=False) == {}
    assert read_bench("table1-sd14").grid.base == PAPERS_MODEL
