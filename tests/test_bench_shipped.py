"""The grids that come with the package: every artefact of the paper, its shape, and what the artefacts share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench_grids import counted
from conftest import Call
from metaunlearn.bench.plan import make_plan
from metaunlearn.bench.recipe import read_bench
from metaunlearn.erasure.registry import configure
from metaunlearn.overrides import as_overrides
from metaunlearn.recipe import read_recipe, recipe_names

GRIDS = [name for name in recipe_names() if read_recipe(name).kind == "grid"]
ARTEFACTS = [*(f"table{n}" for n in range(1, 6)), *(f"figure{n}" for n in range(2, 12)), "attack-optimizers",
             "adversarial"]  # fmt: skip


def test_every_artefact_of_the_paper_has_both_sizes() -> None:
    for artefact in ARTEFACTS:
        assert f"{artefact}-canvas" in GRIDS
        assert {f"{artefact}-sd14", f"{artefact}-sdxl"} & {*GRIDS}, artefact


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_grids_dry_run_without_anything(
    name: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaunlearn.bench.needs.Needs.of", lambda *_: None)  # Seconds for each method.
    outcome = call("bench", name, "--out", tmp_path / "out", "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert bool(found["missing"]) == (not name.endswith("-canvas"))
    assert len(found["todo"]) == sum(part["cells"] for part in found["kinds"]) > 0


@pytest.mark.parametrize(
    ("name", "rows", "kinds"),
    [
        # 6 methods x 2 models x (before + 3 attacks x 4 steps), and the original; 13 draw for COCO's captions, too.
        (
            "table1-sd14",
            157,
            {"pictures": 1, "given": 3, "erase": 12, "attack": 36, "drawn": 157 + 13, "evaluate": 157},
        ),
        # The same before any attack.
        ("table2-sd14", 13, {"pictures": 1, "erase": 12, "drawn": 2 * 13, "evaluate": 13}),
        # 6 variants x 2 models x (before + one step); the plain ones of one length are one model: 6 + 2.
        ("table4-sd14", 24, {"pictures": 1, "given": 1, "erase": 8, "attack": 8, "drawn": 16, "evaluate": 16}),
        # 2 seeds x (the original + 6 variants x 2 models x (before + 4 steps)); a seed has 6 + 2 models.
        ("table4-canvas", 122, {"pictures": 2, "data": 2, "erase": 16, "attack": 16, "measure": 82}),
        # 2 models x (before + 4 optimisers), and the original.
        (
            "attack-optimizers-sd14",
            11,
            {"pictures": 1, "given": 1, "erase": 2, "attack": 8, "drawn": 11, "evaluate": 11},
        ),
        # 2 seeds x (the original + 2 models x (before + 4 optimisers x 4 steps)).
        ("attack-optimizers-canvas", 70, {"pictures": 2, "data": 2, "erase": 4, "attack": 16, "measure": 70}),
        # 2 models, before and attacked; RECE itself needs no pictures, its second stage does.
        ("adversarial-sd14", 4, {"pictures": 1, "erase": 2, "drawn": 2, "evaluate": 2, "adversarial": 2}),
        # 2 concepts x (the original + 2 models x (before + one step)).
        ("figure2-sdxl", 10, {"pictures": 2, "given": 2, "erase": 4, "attack": 4, "drawn": 10, "evaluate": 10}),
        # One model, before and after each of 12 steps.
        ("figure7-sd14", 13, {"pictures": 1, "given": 1, "erase": 1, "attack": 1, "drawn": 13, "evaluate": 13}),
    ],
)
def test_shipped_grids_have_the_papers_shape(name: str, rows: int, kinds: dict[str, int]) -> None:
    plan = make_plan(read_bench(name).grid)
    assert (len(plan.rows), counted(plan)) == (rows, kinds)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("table2-canvas", "table1-canvas"), ("table4-canvas", "ablation-gamma-canvas"),
        ("table5-canvas", "ablation-inner-canvas"), ("figure4-canvas", "table1-canvas"),
        ("figure5-canvas", "figure4-canvas"), ("figure8-canvas", "figure4-canvas"),
        ("figure10-canvas", "table1-canvas"), ("figure11-canvas", "table1-canvas"),
    ],
)  # fmt: skip
def test_artefacts_of_one_grid_share_its_cells(part: str, whole: str) -> None:
    mine, theirs = (set(make_plan(read_bench(name).grid).cells) for name in (part, whole))
    assert mine <= theirs


@pytest.mark.parametrize(
    ("part", "whole"),
    [("figure10-sd14", "table1-sd14"), ("table3-sd14", "table1-sd14"), ("figure8-sdxl", "figure4-sdxl")],
)
def test_figures_share_the_erased_models(part: str, whole: str) -> None:
    mine, theirs = (
        {name for name in make_plan(read_bench(recipe).grid).cells if name.startswith("erase-")}
        for recipe in (part, whole)
    )
    assert mine <= theirs


@pytest.mark.parametrize("suffix", ["-sd14", "-sdxl"])
def test_commands_lead_to_the_folder_that_is_shared(suffix: str) -> None:
    """Of the paper's tables and figures on one base model: what they have in common is made once."""
    commands = [read_recipe(name) for name in recipe_names() if name.endswith(suffix)]
    folders = [recipe.command.partition(" --out ")[2] for recipe in commands if recipe.grid]
    assert len(folders) > 5
    assert len(set(folders)) == 1


@pytest.mark.parametrize(("recipe", "concept"), [("small-character", "clown"), ("small-style", "openmoji")])
def test_the_recipes_of_a_character_and_a_style_are_what_was_measured(recipe: str, concept: str) -> None:
    """resistance-canvas says so by what its concepts set."""
    [asked] = [one for one in read_bench("resistance-canvas").grid.concepts if one.name == concept]
    measured = configure("esd-u-1", read_recipe("small"), as_overrides(asked.set))
    assert configure("esd-u-1", read_recipe(recipe)) == measured


def test_sdxl_lasting_is_sd14_lasting_with_what_is_of_xl() -> None:
    lasting, xl = read_recipe("sdxl-lasting"), read_recipe("sdxl")
    assert (lasting.attack, lasting.attacks) == (xl.attack, xl.attacks)
    assert lasting.methods["esd-2025"] == xl.methods["esd-2025"]
    assert lasting.erase == {**read_recipe("sd14-lasting").erase, "gradient_checkpointing": True}
