"""Whose the folder ``OUT/RECIPE`` is: a shipped recipe's or a file's of its name, and never that of the store itself.
Cells are made of nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench_grids import TINY, cells_of_nothing, write_recipe
from conftest import Call
from metaunlearn.bench.run import CSV_FILE, TABLES_FILE, run_grid
from metaunlearn.bench.store import RESERVED, Store
from metaunlearn.errors import UserError
from metaunlearn.runs import RESULTS_FILE

SHIPPED, OWN = "figure6-canvas", "figure6-canvas.toml"
FOLDER, PLAN = Path("out", SHIPPED), Path("out", "plans", f"{SHIPPED}.json")


@pytest.fixture(autouse=True)
def of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells_of_nothing(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own(call: Call) -> Path:
    """A copy of the shipped recipe, edited: another seed."""
    assert call("recipes", "copy", SHIPPED).code == 0
    text = Path(OWN).read_text(encoding="utf-8")
    Path(OWN).write_text(text.replace("seeds = [0]", "seeds = [1]"), encoding="utf-8")
    assert Path(OWN).read_text(encoding="utf-8") != text
    return Path(OWN)


def content() -> dict[Path, str]:
    return {file: file.read_text() for file in (*FOLDER.iterdir(), PLAN)}


@pytest.mark.parametrize("names", [(SHIPPED, OWN), (OWN, SHIPPED)])
def test_a_copy_does_not_write_over_the_shipped_recipes_tables(names: tuple[str, str], own: Path, call: Call) -> None:
    """Nor the other way round; a copy of another name is made beside it."""
    first, second = names
    run_grid(first, Path("out"))
    before = content()
    for more in ((), ("--dry-run",), ("--set", "steps=7")):
        outcome = call("bench", second, "--out", "out", *more)
        assert (outcome.code, content()) == (2, before)
        assert f"the shipped recipe {SHIPPED}" in outcome.err
        assert f"the file {OWN}" in outcome.err
    shutil.copy(OWN, "mine.toml")
    run_grid("mine.toml", Path("out"))
    assert content() == before
    assert Path("out", "mine", TABLES_FILE).exists()


def test_one_recipe_may_change(own: Path) -> None:
    """What it says, where a file lies, and what the call says beside it."""
    run_grid(SHIPPED, Path("out"))
    run_grid(SHIPPED, Path("out"), overrides=["steps=7"], only=["seed=0"])
    assert json.loads((FOLDER / RESULTS_FILE).read_text())["overrides"] == ["steps=7"]
    run_grid(OWN, Path("other"))
    own.write_text(own.read_text(encoding="utf-8").replace("seeds = [1]", "seeds = [1, 2]"), encoding="utf-8")
    run_grid(OWN, Path("other"), only=["seed=2"])
    Path("elsewhere").mkdir()
    run_grid(str(own.rename(Path("elsewhere", OWN)).absolute()), Path("other"))


@pytest.mark.parametrize("left", ["plan", "tables"])
def test_either_of_them_says_whose_a_folder_is(left: str, own: Path) -> None:
    """A call that was stopped leaves a plan alone; a plan of an earlier version says nothing. Where both are deleted,
    as the message has it, nothing is lost."""
    run_grid(SHIPPED, Path("out"))
    if left == "plan":
        shutil.rmtree(FOLDER)
    else:
        record = json.loads(PLAN.read_text(encoding="utf-8"))
        PLAN.write_text(json.dumps({key: value for key, value in record.items() if key != "bench"}), encoding="utf-8")
    with pytest.raises(UserError, match=rf"delete {FOLDER} and {PLAN}"):
        run_grid(OWN, Path("out"))
    shutil.rmtree(FOLDER, ignore_errors=True)
    PLAN.unlink()
    run_grid(OWN, Path("out"))
    assert {file.name for file in FOLDER.iterdir()} == {TABLES_FILE, RESULTS_FILE, CSV_FILE}


@pytest.mark.parametrize("name", [*RESERVED, "Cells", ".hidden", ""])
def test_a_recipe_has_no_name_that_the_store_needs(name: str) -> None:
    recipe = write_recipe(Path(f"{name}.toml"), TINY)
    with pytest.raises(UserError, match=r"cannot be called .*\.toml'.*Give the file another name"):
        run_grid(str(recipe), Path("out"))
    assert not Path("out").exists()


def test_every_folder_of_the_store_is_reserved() -> None:
    """What a whole bench leaves beside its recipe's folder, and what only some leave."""
    store = Store(Path("out"))
    run_grid(SHIPPED, store.out)
    store.complain("data-0", "text")
    store.dropped.mkdir()
    assert {folder.name for folder in store.out.iterdir()} - {"shared", SHIPPED} == {*RESERVED} - {"shared"}
