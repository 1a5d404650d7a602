"""Recipes of a user's own: where they name others, what their own settings are for, and how they were saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench_grids import TINY, changed, write_recipe
from conftest import Call
from metaunlearn.bench.recipe import read_bench
from metaunlearn.bench.run import dry_run
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_recipe

OWN = 'description = "Mine."\nextends = "small"\n[erase]\nsteps = 7\n'


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``mine.toml``, which is not the current one."""
    folder, other = tmp_path / "recipes", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (folder / "mine.toml").write_text(OWN)
    monkeypatch.chdir(other)
    return folder


def test_a_recipe_names_others_from_where_it_lies(elsewhere: Path) -> None:
    (elsewhere / "more.toml").write_text('extends = "mine.toml"\n[erase]\nbatch_size = 3\n')
    found = read_recipe(str(elsewhere / "more.toml")).erase
    assert (found["steps"], found["batch_size"]) == (7, 3)
    grid = write_recipe(elsewhere / "grid.toml", {**TINY, "recipe": "mine.toml"})
    assert read_bench(str(grid)).grid.recipe == str(elsewhere / "mine.toml")


def test_a_table_over_what_is_none_is_named(elsewhere: Path) -> None:
    (elsewhere / "base.toml").write_text("[attacks]\nlora = 3\n")
    (elsewhere / "over.toml").write_text('extends = "base.toml"\n[attacks.lora]\nrank = 4\n')
    assert read_recipe(str(elsewhere / "over.toml")).attacks == {"lora": {"rank": 4}}
    (elsewhere / "under.toml").write_text('extends = "over.toml"\n[attacks]\nlora = 3\n')
    with pytest.raises(UserError, match=r"attacks\.lora = 3"):
        read_recipe(str(elsewhere / "under.toml"))


def test_what_is_not_there_is_named_with_the_file_that_names_it(elsewhere: Path) -> None:
    (elsewhere / "more.toml").write_text('extends = "yours.toml"\n')
    with pytest.raises(UserError, match=r"recipe .*more.toml, extends: there is no recipe 'yours.toml'"):
        read_recipe(str(elsewhere / "more.toml"))
    grid = write_recipe(elsewhere / "grid.toml", {**TINY, "recipe": "smal"})
    with pytest.raises(UserError, match=r"recipe .*grid.toml, \[grid\]: there is no recipe 'smal'"):
        read_bench(str(grid))


def test_a_grids_own_settings_are_its_settings(elsewhere: Path) -> None:
    """Unless it says that another's are, which would leave its own without effect."""
    plain: dict[str, Any] = {key: value for key, value in TINY.items() if key != "set"}
    grid = write_recipe(elsewhere / "grid.toml", plain)
    assert read_bench(str(grid)).grid.recipe == "small"
    grid.write_text(OWN + grid.read_text().partition("\n")[2])
    assert read_bench(str(grid)).grid.recipe == str(grid)
    write_recipe(elsewhere / "other.toml", {**plain, "recipe": "small"})
    (elsewhere / "other.toml").write_text(OWN + (elsewhere / "other.toml").read_text().partition("\n")[2])
    with pytest.raises(UserError, match=r"has settings of erasing .* recipe = 'small' brings others"):
        read_bench(str(elsewhere / "other.toml"))


def test_a_file_may_begin_with_the_mark_of_utf_8(elsewhere: Path) -> None:
    (elsewhere / "mine.toml").write_text(OWN, encoding="utf-8-sig")
    assert read_recipe(str(elsewhere / "mine.toml")).erase["steps"] == 7


def test_one_mistake_is_told_once(elsewhere: Path) -> None:
    grid = write_recipe(elsewhere / "grid.toml", changed("concepts", 0, "seeds", to="first"))
    with pytest.raises(UserError) as error:
        read_bench(str(grid))
    assert "concepts.0.seeds" in str(error.value)
    assert "should have at least 1" not in str(error.value)
    assert "tuple" not in str(error.value)


def test_one_text_may_stand_for_a_list_of_one(elsewhere: Path) -> None:
    grid = write_recipe(elsewhere / "grid.toml", TINY)
    assert dry_run(str(grid), "out", only="model=meta-unlearn")


def test_a_base_model_that_is_no_hub_id_is_a_folder_that_is_not_there(elsewhere: Path, call: Call) -> None:
    prompts = [{"name": "p", "texts": ["a"]}]
    grid = {key: value for key, value in TINY.items() if key not in ("measure", "attacks")}
    write_recipe(elsewhere / "grid.toml", {**grid, "base": "my model", "prompts": prompts, "attacks": []})
    found = call("bench", elsewhere / "grid.toml", "--out", "out", "--dry-run")
    assert "the base model my model: there is no such folder or file; give it with --use base=DIR" in found.out
    assert "hf download" not in found.out


def test_the_folder_of_a_bench_is_no_evaluation(tmp_path: Path, call: Call) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"bench": "tiny", "rows": []}))
    for command in (("table", tmp_path), ("compare", tmp_path, tmp_path, "--metric", "concept")):
        found = call(*command)
        assert found.code == 2
        assert "holds the tables of a bench" in found.err
