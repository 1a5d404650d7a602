"""Making one cell: what is kept of it when it breaks, whose it is, and whether it still is what was planned."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench_grids import TINY, changed, plan_of
from metaunlearn import files
from metaunlearn.bench import cells, sources
from metaunlearn.bench.cells import Cell
from metaunlearn.bench.identity import check_inputs
from metaunlearn.bench.inputs import Inputs
from metaunlearn.bench.kinds import given
from metaunlearn.bench.plan import Plan, make_plan
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.store import CELL_FILE, Store
from metaunlearn.bench.work import make
from metaunlearn.data.imagefolder import fingerprint, write_imagefolder
from metaunlearn.errors import UserError
from metaunlearn.runs import NotThisRunError
from metaunlearn.settings import resolve

Maker = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "out" / "cells").mkdir(parents=True)
    return Store(tmp_path / "out")


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Maker], None]:
    """Puts another function in the place of a kind's own."""
    return lambda kind, make: monkeypatch.setattr(f"metaunlearn.bench.kinds.{kind}.make", make)


def cell_of(kind: str, plan: Plan | None = None) -> Cell:
    return next(cell for cell in (plan or plan_of(TINY)).cells.values() if cell.kind == kind)


def whole(store: Store, *names: str) -> None:
    for name in names:
        store.folder(name).mkdir(parents=True)


def test_a_mistake_of_the_user_costs_no_work(store: Store, maker: Callable[[str, Maker], None]) -> None:
    """Five hours of training lie there; the repository of the hub is gone, say."""
    cell = cell_of("data")
    (store.partial(cell.name)).mkdir()
    (store.partial(cell.name) / "state").write_text("five hours")

    def refuses(*_: Any, **__: Any) -> None:
        raise UserError("the base model is not in the cache")

    maker("data", refuses)
    assert make(store, cell).message == "the base model is not in the cache"
    assert (store.partial(cell.name) / "state").read_text() == "five hours"


def test_what_cannot_go_on_begins_anew(store: Store, maker: Callable[[str, Maker], None]) -> None:
    cell = cell_of("data")
    (store.partial(cell.name)).mkdir()
    (store.partial(cell.name) / "state").write_text("of another run")

    def makes(folder: Path, **_: Any) -> None:
        if any(folder.iterdir()):
            raise NotThisRunError("asked for differently (checkpoint_every)")

    maker("data", makes)
    assert make(store, cell).state == "made"
    assert [file.name for file in store.folder(cell.name).iterdir()] == [CELL_FILE]


@pytest.mark.parametrize("breaks", [False, True])
def test_a_cell_whose_lock_was_broken_is_another_hosts(
    breaks: bool, store: Store, maker: Callable[[str, Maker], None]
) -> None:
    """It takes no step more, does not call the other's folder whole, and is no failure, whatever went wrong."""
    cell = cell_of("data")
    lock = store.out / "locks" / f"{cell.name}.lock"
    others = {"host": "elsewhere", "token": "another's"}

    def silent_for_too_long(folder: Path, progress: Any, **_: Any) -> None:
        progress("drawing", 0, 2)
        lock.write_text(json.dumps(others))
        if breaks:
            raise FileNotFoundError(folder)
        progress("drawing", 1, 2)
        (folder / "later").touch()

    maker("data", silent_for_too_long)
    assert make(store, cell).state == "busy"
    assert list(store.partial(cell.name).iterdir()) == []
    assert not store.complete(cell.name)
    assert json.loads(lock.read_text()) == others
    assert not (store.out / "errors").exists()


def test_a_loser_does_not_finish_the_winners_folder(store: Store, maker: Callable[[str, Maker], None]) -> None:
    """Even where it hears of it only in the end."""
    cell = cell_of("data")
    lock = store.out / "locks" / f"{cell.name}.lock"
    maker("data", lambda folder, **_: lock.write_text(json.dumps({"host": "elsewhere", "token": "another's"})))
    assert make(store, cell).state == "busy"
    assert not store.complete(cell.name)


def test_a_cell_waits_for_what_was_dropped_meanwhile(store: Store, maker: Callable[[str, Maker], None]) -> None:
    """Before its lock was taken, or, by a process of an earlier version, while it was read."""
    cell = next(cell for cell in plan_of(TINY).cells.values() if cell.kind == "measure" and "attack" in cell.needs)
    assert make(store, cell).state == "gone"
    whole(store, *cell.needs.values())

    def vanishes(folder: Path, attack: Path, **_: Any) -> None:
        attack.rmdir()
        raise FileNotFoundError(attack / "step-000001")

    maker("measure", vanishes)
    assert make(store, cell).state == "gone"
    assert not (store.out / "errors").exists()


def test_what_a_cell_at_work_needs_stays(store: Store, maker: Callable[[str, Maker], None]) -> None:
    cell = next(cell for cell in plan_of(TINY).cells.values() if cell.kind == "measure" and "attack" in cell.needs)
    whole(store, *cell.needs.values())
    attack = cell.needs["attack"]
    maker("measure", lambda folder, **_: Store(store.out).remove(attack))
    assert make(store, cell).state == "made"
    assert store.complete(attack)
    store.remove(attack)
    assert not store.complete(attack)


def test_a_cell_is_made_on_the_device_that_its_key_has(store: Store) -> None:
    plan = make_plan(resolve(Grid, TINY), device="cuda:1")
    with pytest.raises(ValueError, match="is one of cuda, and would be made on cpu"):
        make(store, cell_of("pictures", plan), device="cpu")
    assert make(store, cell_of("data", plan), device="cuda:1").state == "made"


def test_a_worker_with_other_code_makes_no_cell(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours, or of a package that the key names; nothing that was there of it is lost."""
    cell = cell_of("data")
    store.partial(cell.name).mkdir()
    (store.partial(cell.name) / "state").touch()
    with monkeypatch.context() as patch:
        patch.setattr(cells, "code_of", lambda kind: "another")
        outcome = make(store, cell)
    assert (outcome.state, "another metaunlearn, in what makes cells of the kind 'data'" in outcome.message) == (
        "failed", True
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(cells, "_version", lambda name: "0.1" if name == "pillow" else cell.packages[name])
        assert f"pillow 0.1 for {cell.packages['pillow']}" in make(store, cell).message
    assert (store.partial(cell.name) / "state").exists()
    assert make(store, cell).state == "made"


def test_all_code_behind_a_cell_is_loaded_when_it_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is edited before it is first imported would run under the key of what it was."""
    for name in ("metaunlearn.bench.kinds.donor", "metaunlearn.attacks.loop"):
        assert name in sources.modules_behind("metaunlearn.bench.kinds.donor")
        parent, _, leaf = name.rpartition(".")
        loaded = import_module(name)
        monkeypatch.setattr(sys.modules[parent], leaf, loaded)  # Put back when this is over.
        monkeypatch.delitem(sys.modules, name)
    cells.code_of.cache_clear()
    cells.code_of("donor")
    assert {"metaunlearn.bench.kinds.donor", "metaunlearn.attacks.loop"} <= set(sys.modules)


SETTINGS = """
extends = "small"
[erase]
steps = 4
[attack]
learning_rate = 1e-4
"""


@pytest.mark.parametrize(
    ("kind", "before", "after", "says"),
    [
        ("erase", "[erase]", "[erase]\ninner_learning_rate = 0.125", r"inner_learning_rate: .*, now 0\.125"),
        ("attack", "1e-4", "2e-4", r"learning_rate: 0\.0001, now 0\.0002"),
        ("attack", SETTINGS, "[attak]", "unknown key 'attak'"),
    ],
)
def test_a_recipe_that_was_edited_meanwhile_gives_no_cell_of_the_old_key(
    kind: str, before: str, after: str, says: str, store: Store, tmp_path: Path, maker: Callable[[str, Maker], None]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text(SETTINGS)
    grid = changed("concepts", 0, "attack", to={}, of=changed("recipe", to=str(recipe)))
    cell = cell_of(kind, make_plan(resolve(Grid, grid)))
    whole(store, *cell.needs.values())
    maker(kind, lambda folder, **_: None)
    recipe.write_text(SETTINGS.replace(before, after))
    outcome = make(store, cell)
    assert outcome.state == "failed"
    with pytest.raises(UserError, match=says):
        raise UserError(outcome.message)
    recipe.write_text("# Other words.\n" + SETTINGS + "checkpoint_every = 1\n")
    assert make(store, cell).state == "made"
    assert make_plan(resolve(Grid, grid)).cells.get(cell.name) is not None


def test_a_recipe_is_read_for_each_plan(tmp_path: Path) -> None:
    """Also in one process: an edited one gives other keys."""
    recipe = tmp_path / "own.toml"
    recipe.write_text(SETTINGS)
    grid = resolve(Grid, changed("recipe", to=str(recipe)))
    before = cell_of("erase", make_plan(grid))
    recipe.write_text(SETTINGS.replace("[erase]", "[erase]\ninner_learning_rate = 0.125"))
    assert cell_of("erase", make_plan(grid)).name != before.name


def test_what_runs_a_metric_is_part_of_the_keys_of_those_that_score_it() -> None:
    """Installing it makes no other cell of the kind again."""
    for metrics, more in ((["nudity:rece-9@0.6", "fid"], {"onnxruntime"}), (["fid", "unsafe"], set())):
        prompts = {"name": "concept", "texts": ["a"], "scores": {name[:3]: name for name in metrics}}
        grid = {
            "base": "canvas",
            "judge": "canvas",
            "methods": ["esd-x-1"],
            "models": ["original"],
            "prompts": [prompts],
        }
        plan = make_plan(resolve(Grid, {**grid, "concepts": [{"name": "knife"}], "recipe": "small"}))
        assert set(cell_of("evaluate", plan).packages) - {*cells.NUMERICAL, *cells.DECODING} == more


def test_records_are_those_of_cells_and_not_of_their_halves(store: Store, maker: Callable[[str, Maker], None]) -> None:
    """Nor of what is just being dropped; of what was dropped the record stays."""
    maker("data", lambda folder, **_: None)
    cell = cell_of("data")
    assert make(store, cell).state == "made"
    record = store.record(cell.name)
    for half in (store.partial(cell.name), store.cells / f".{cell.name}.removed"):
        half.mkdir()
        (half / CELL_FILE).write_text(json.dumps(record))
    assert store.records() == [record]
    store.remove(cell.name)
    assert not store.complete(cell.name)
    assert (record["kind"], store.record(cell.name), store.records()) == ("data", record, [record])
    assert make(store, cell).state == "made"
    assert len(store.records()) == 1
    assert store.record("data-1") == {}


def test_a_broken_record_is_named(store: Store) -> None:
    whole(store, "data-0")
    for text in ("{", "[]"):
        (store.folder("data-0") / CELL_FILE).write_text(text)
        with pytest.raises(UserError, match="data-0"):
            store.record("data-0")


def test_a_copy_that_was_cut_off_begins_anew(tmp_path: Path) -> None:
    """Also where something lies in it that the source has no more."""
    import torch

    write_imagefolder(tmp_path / "source", torch.rand(1, 3, 8, 8), ["a knife"])
    write_imagefolder(tmp_path / "copy", torch.rand(3, 3, 8, 8), ["a", "b", "c"])
    wanted = fingerprint(tmp_path / "source")
    given.make(tmp_path / "copy", source=str(tmp_path / "source"), wanted=wanted, device="cpu", progress=None)
    assert fingerprint(tmp_path / "copy") == wanted


def test_inputs_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a cluster has another current folder. Links stay: what the hub's cache links to has no ending."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text("{}")
    (tmp_path / "head.safetensors").symlink_to("blob")
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "own.toml").write_text(SETTINGS)
    prompts = {"name": "concept", "texts": ["a"], "scores": {"nsfw": "nsfw"}}
    grid = resolve(
        Grid,
        {
            "base": "nobody/no-such-model", "judge": "canvas", "recipe": "own.toml", "methods": ["esd-x-1"],
            "models": ["meta-unlearn"], "concepts": [{"name": "knife"}], "prompts": [prompts],
        },
    )  # fmt: skip
    plan = make_plan(grid, inputs=Inputs(grid, use=["base=base", "nsfw=head.safetensors"]))
    call = cell_of("erase", plan).call
    assert (call["base"], call["recipe"]) == (str(tmp_path / "base"), str(tmp_path / "own.toml"))
    (asked,) = cell_of("evaluate", plan).call["sets"]
    assert asked["scores"] == {"nsfw": f"nsfw:{tmp_path / 'head.safetensors'}"}
    assert cell_of("erase", make_plan(grid)).call["base"] == "nobody/no-such-model"
    assert cell_of("erase", plan_of(TINY)).call["recipe"] == "small"


def test_a_machine_that_has_another_model_makes_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of("erase")
    check_inputs(cell)
    monkeypatch.setattr("metaunlearn.bench.identity.pipeline_identity", lambda model: "another")
    with pytest.raises(UserError, match="canvas is another, and this grid was planned with"):
        check_inputs(cell)
    monkeypatch.setattr("metaunlearn.bench.identity.pipeline_identity", lambda model: None)
    with pytest.raises(UserError, match="canvas is not there: put it back"):
        check_inputs(cell)


@pytest.fixture
def lying(tmp_path: Path) -> dict[str, Path]:
    """Where a grid's inputs lie, by name."""
    import torch

    for name in ("base", "judge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("1234")
    (tmp_path / "inception.safetensors").write_text("1234")
    write_imagefolder(tmp_path / "real", torch.rand(2, 3, 8, 8), ["a knife", "a fork"])
    found = {name: tmp_path / name for name in ("base", "judge", "real")}
    return found | {"inception": tmp_path / "inception.safetensors"}


def plan_with(lying: dict[str, Path]) -> Plan:
    """Of an original model that is evaluated by a judge and by FID, and attacked on prompts."""
    scores = {"concept": "concept", "fid": "fid:inception@full"}
    grid = resolve(
        Grid,
        {
            "base": "nobody/no-such-model", "recipe": "small", "methods": ["esd-x-1"],
            "models": ["original", "unlearn"], "concepts": [{"name": "knife"}],
            "prompts": [{"name": "concept", "texts": ["a"], "reference": "real", "scores": scores}],
            "attacks": [{"name": "words", "kind": "unlearndiffatk", "prompts": {"texts": ["a"]}}],
        },
    )  # fmt: skip
    return make_plan(grid, inputs=Inputs(grid, use=[f"{name}={path}" for name, path in lying.items()]))


@pytest.mark.parametrize("during", [False, True])
@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("pictures", "base", "weights"),
        ("drawn", "base", "weights"),
        ("evaluate", "judge", "weights"),
        ("evaluate", "real", "000000.png"),
        ("evaluate", "inception", ""),
        ("adversarial", "judge", "weights"),
    ],
)
def test_what_changes_under_a_grid_gives_no_cell_of_the_old_key(
    kind: str,
    name: str,
    file: str,
    during: bool,
    lying: dict[str, Path],
    store: Store,
    maker: Callable[[str, Maker], None],
) -> None:
    """Before a cell is made or in the middle of it, by as many bytes; nothing goes on from what was drawn by then."""
    plan = plan_with(lying)
    cell = cell_of(kind, plan)
    whole(store, *cell.needs.values())
    target = lying[name] / file if file else lying[name]
    there = target.read_bytes()
    other = bytes([there[0] ^ 1]) + there[1:]

    def makes(folder: Path, **_: Any) -> None:
        (folder / "drawn").touch()
        if during:
            target.write_bytes(other)

    maker(kind, makes)
    if not during:
        target.write_bytes(other)
    outcome = make(store, cell)
    assert (outcome.state, store.partial(cell.name).exists()) == ("failed", False)
    assert str(lying[name]) in outcome.message
    assert "the same call plans anew" in outcome.message
    again = cell_of(kind, plan_with(lying))
    assert again.name != cell.name
    maker(kind, lambda folder, **_: None)
    whole(store, *set(again.needs.values()) - set(cell.needs.values()))
    assert make(store, again).state == "made"
    target.write_bytes(there)
    assert make(store, cell).state == "made"


def test_files_are_read_again_only_where_they_changed(lying: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cell, read = cell_of("evaluate", plan_with(lying)), files.sha256
    monkeypatch.setattr(files, "sha256", lambda file: pytest.fail(f"{file} was read"))
    check_inputs(cell)
    monkeypatch.setattr(files, "sha256", read)
    (lying["base"] / "weights").touch()
    check_inputs(cell)
    (lying["judge"] / "weights").unlink()
    with pytest.raises(UserError, match="judge is"):
        check_inputs(cell)
