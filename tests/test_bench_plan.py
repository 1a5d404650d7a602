"""What bench would do: a grid as read, its rows and cells, and what their keys depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_grids import CELLS, TINY, changed, counted, plan_of, write_recipe
from metaunlearn.bench import cells, sources
from metaunlearn.bench.plan import Plan, make_plan, place_of, states
from metaunlearn.bench.recipe import Grid, check_grid, read_bench
from metaunlearn.bench.select import select
from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError
from metaunlearn.overrides import as_overrides, parse_overrides
from metaunlearn.recipe import read_recipe, recipe_names
from metaunlearn.settings import resolve

BOTH = changed("models", to=["original", "unlearn", "meta-unlearn"])
CANVAS_KINDS = {"pictures", "data", "erase", "attack", "measure"}
"""Kinds of cells that a grid measured on tasks of Canvas has."""
GRIDS = [name for name in recipe_names() if read_recipe(name).kind == "grid"]


def names(plan: Plan, kind: str) -> set[str]:
    return {cell.name for cell in plan.cells.values() if cell.kind == kind}


def kinds_changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    one, other = plan_of(before), plan_of(after)
    return {kind for kind in cells.KINDS if names(one, kind) != names(other, kind)}


def test_a_grid_that_retains_nothing_needs_no_pictures_or_something_related() -> None:
    """UCE without the meta objective draws nothing; ESD's two kinds of retained pictures are then both of what is
    related, and without any the plan says so before a cell is made."""
    grid = changed("concepts", 0, "retain", to=["none"])
    edits = changed("methods", to=["uce"], of=changed("models", to=["unlearn"], of=grid))
    assert "pictures" not in counted(plan_of(edits))
    assert "pictures" in counted(plan_of(changed("concepts", 0, "related", to=["a fork"], of=grid)))
    with pytest.raises(UserError, match=r"retain = \['none'\].*related or retain"):
        plan_of(grid)


@pytest.mark.parametrize(
    ("path", "to", "kinds"),
    [
        (("measure", "between", "concept"), 3, {"measure"}),
        (("measure", "shown"), 0, {"measure"}),
        (("concepts", 0, "attack", "learning_rate"), 2e-4, {"attack", "measure"}),
        (("attacks", 0, "set", "optimizer"), "sgd", {"attack", "measure"}),
        (("concepts", 0, "steps"), [1, 3], {"attack", "measure"}),
        (("attacks", 0, "pictures"), 3, {"data", "attack", "measure"}),
        (("attacks", 0, "data"), "hrm-s", {"data", "attack", "measure"}),
        (("set", "gamma2"), 0.7, {"erase", "attack", "measure"}),
        (("set", "retain_images"), 3, {"pictures", "erase", "attack", "measure"}),
        (("methods",), ["esd-u-1"], {"erase", "attack", "measure"}),
        (("concepts", 0, "seeds"), [1], set(CANVAS_KINDS)),
        (("concepts", 0, "name"), "clown", set(CANVAS_KINDS)),
        (("set", "checkpoint_every"), 2, set()),
        (("concepts", 0, "attack", "checkpoint_every"), 2, set()),
        (("attacks", 0, "name"), "another name", set()),
        (("keep_checkpoints",), False, set()),
        (("published",), ["table1_nudity_score"], set()),
    ],
)
def test_keys_change_with_what_they_depend_on_only(path: tuple[Any, ...], to: Any, kinds: set[str]) -> None:
    assert kinds_changed(TINY, changed(*path, to=to)) == kinds


def test_a_plain_run_does_not_depend_on_the_meta_objective() -> None:
    plain = changed("models", to=["unlearn"])
    others = {"gamma2": 0.7, "zeta": 0.1, "inner_steps": 2, "inner_learning_rate": 1.0, "difference_precision": "tf32"}
    for key, value in others.items():
        assert kinds_changed(plain, changed("set", key, to=value, of=plain)) == set(), key
    assert "erase" in kinds_changed(plain, changed("set", "retain_weight", to=0.7, of=plain))
    flat = changed("set", "lipschitz_weight", to=1.0, of=plain)
    assert kinds_changed(flat, changed("set", "gamma2", to=0.7, of=flat)) == set()
    assert "erase" in kinds_changed(flat, changed("set", "inner_steps", to=2, of=flat))


def test_a_concepts_settings_may_be_of_one_method_alone() -> None:
    both = changed("methods", to=["esd-x-1", "sdd"])
    mine = changed("concepts", 0, "by_method", to={"esd-x-1": {"guide": "fork"}}, of=both)
    before, after = (names(plan_of(grid), "erase") for grid in (both, mine))
    assert len(before & after) == 1
    assert all("guide=fork" in plan_of(mine).cells[name].call["overrides"] for name in after - before)
    with pytest.raises(UserError, match="has no method 'esd-u-1'"):
        check_grid(resolve(Grid, changed("concepts", 0, "by_method", to={"esd-u-1": {}}, of=both)))


def test_settings_may_be_of_one_model_alone() -> None:
    longer = changed("by_model", to={"unlearn": {"steps": 9}}, of=BOTH)
    before, after = (names(plan_of(grid), "erase") for grid in (BOTH, longer))
    [other] = after - before
    assert len(before & after) == 1
    assert plan_of(longer).cells[other].labels["model"] == "unlearn"
    with pytest.raises(UserError, match="no erased model 'original'"):
        check_grid(resolve(Grid, changed("by_model", to={"original": {}}, of=BOTH)))


def test_a_closed_form_edit_needs_no_pictures() -> None:
    edit = changed("models", to=["unlearn"], of=changed("methods", to=["uce"]))
    assert names(plan_of(edit), "pictures") == set()
    assert kinds_changed(edit, changed("set", "steps", to=9, of=edit)) == set()
    assert len(names(plan_of(changed("methods", to=["uce"])), "pictures")) == 1


def test_more_seeds_leave_the_others_as_they_are() -> None:
    more = plan_of(changed("concepts", 0, "seeds", to=[0, 1]))
    assert set(plan_of(TINY).cells) < set(more.cells)
    assert len(more.cells) == 2 * CELLS
    assert [row.seed for row in more.rows] == [0, 0, 0, 1, 1, 1]


def test_all_methods_and_variants_share_their_pictures_and_one_plain_run() -> None:
    grid = changed("methods", to=["esd-x-1", "sdd"], of=BOTH)
    grid["variants"] = [{"name": "a", "set": {"gamma2": 0.1}}, {"name": "b", "set": {"gamma2": 0.2}}]
    plan = plan_of(grid)
    assert len(names(plan, "pictures")) == 1
    assert len(names(plan, "data")) == 1
    assert len(names(plan, "erase")) == 2 * (1 + 2)
    assert len(plan.rows) == 1 + 2 * 2 * 2 * 3


def test_keys_hold_the_code_and_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    before, code_of = plan_of(TINY), cells.code_of
    monkeypatch.setattr(cells, "code_of", lambda kind: "other code" if kind == "attack" else code_of(kind))
    after = plan_of(TINY)
    assert {kind for kind in cells.KINDS if names(before, kind) != names(after, kind)} == {"attack", "measure"}
    version = cells._version
    monkeypatch.setattr(cells, "_version", lambda name: "0" if name == "torch" else version(name))
    assert {kind for kind in cells.KINDS if names(plan_of(TINY), kind) == names(after, kind)} == (
        {*cells.KINDS} - CANVAS_KINDS
    )


def test_what_decodes_pictures_is_part_of_the_keys_of_those_that_read_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own are kept without loss and at their size: another Pillow erases nothing again."""
    before, version = plan_of(TINY), cells._version
    monkeypatch.setattr(cells, "_version", lambda name: "0" if name == "pillow" else version(name))
    after = plan_of(TINY)
    changed_kinds = {kind for kind in cells.KINDS if names(before, kind) != names(after, kind)}
    assert changed_kinds == {"data", "attack", "measure"}


def test_keys_hold_the_kind_of_device() -> None:
    """One GPU is as good as another, and drawn pictures are the CPU's everywhere."""
    grid = resolve(Grid, TINY)
    on = {device: make_plan(grid, device=device) for device in ("cpu", "cuda", "cuda:1")}
    assert set(on["cuda"].cells) == set(on["cuda:1"].cells)
    assert {name.split("-")[0] for name in set(on["cpu"].cells) & set(on["cuda"].cells)} == {"data"}
    assert len(on["cpu"].cells) == len(on["cuda"].cells)
    shared = {device: {cell.call.get("paths") for cell in plan.cells.values()} for device, plan in on.items()}
    assert shared["cpu"] & shared["cuda"] == {None}


def test_the_code_behind_a_cell() -> None:
    behind = {kind: sources.modules_behind(f"metaunlearn.bench.kinds.{kind}") for kind in cells.KINDS}
    part = {
        "erase": {"meta.train", "meta.hypergradient", "erasure.esd", "erasure.uce", "diffusion", "data.latents"},
        "attack": {"attacks.finetune", "diffusion", "data.imagefolder"},
        "measure": {"metrics.fid", "metrics.judge", "generation", "canvas.measure", "canvas.scenes"},
        "pictures": {"generation", "erasure.prepare", "canvas.tasks"},
        "data": {"canvas.datasets", "canvas.scenes"},
        "given": {"data.imagefolder"},
        "drawn": {"draws", "generation", "models.state"},
        "evaluate": {"evaluating_pictures", "metrics.measures"},
        "adversarial": {"attacking_prompts", "attacks.unlearndiffatk", "metrics.nudenet"},
    }
    for kind, modules in part.items():
        assert {f"metaunlearn.{name}" for name in modules} <= behind[kind], kind
    for kind, modules in behind.items():
        assert not [name for name in modules if name.startswith(("metaunlearn.cli", "metaunlearn.report"))], kind
        assert [name for name in modules if name.startswith("metaunlearn.bench")] == [f"metaunlearn.bench.kinds.{kind}"]
    assert not [name for name in behind["measure"] if name.startswith("metaunlearn.meta")]
    for kind in ("pictures", "erase", "donor", "attack", "drawn"):  # a metric that changes trains and draws nothing
        assert not [name for name in behind[kind] if name.startswith(("metaunlearn.metrics", "metaunlearn.tracking"))]
    assert "metaunlearn.bench.published" in sources.modules_behind("metaunlearn.bench.tables")


def test_code_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "top.py").write_text('"""Text."""\ndef f():\n    from metaunlearn import deep\n    return deep.x\n')
    (tmp_path / "deep.py").write_text("x = 1\n")
    (tmp_path / "aside.py").write_text("y = 1\n")
    (tmp_path / "deep").mkdir()  # Of data, beside the module: no package.

    def code() -> str:
        for cached in (sources.modules_behind, sources._imports, sources._code):
            cached.cache_clear()
        return sources.code_hash("metaunlearn.top")

    try:
        first = code()
        (tmp_path / "aside.py").write_text("y = 2\n")
        (tmp_path / "deep.py").write_text('"""Other words."""\nx = 1  # Why.\n')
        assert code() == first
        (tmp_path / "deep.py").write_text("x = 2\n")
        assert code() != first
    finally:
        monkeypatch.undo()
        for cached in (sources.modules_behind, sources._imports, sources._code):
            cached.cache_clear()


@pytest.mark.parametrize("name", GRIDS)
def test_shipped_grids_can_be_planned(name: str) -> None:
    recipe = read_bench(name)
    rows = plan_of(recipe.grid.model_dump()).rows
    assert recipe.command.startswith(f"metaunlearn bench {name} --out ")
    assert len({row.cell.name for row in rows}) <= len(rows)
    seeds = [row.seed for row in rows]
    assert seeds == sorted(seeds)


def test_table1_has_the_papers_shape() -> None:
    """3 concepts with 3 + 1 + 1 seeds; 6 methods, 2 models, before and 3 attacks of 4 steps; and the originals."""
    plan = plan_of(read_bench("table1-canvas").grid.model_dump())
    assert len(plan.rows) == 5 * (1 + 6 * 2 * 13)
    assert {kind: len(names(plan, kind)) for kind in sorted(CANVAS_KINDS)} == {
        "pictures": 5, "data": 15, "erase": 60, "attack": 180, "measure": 785,
    }  # fmt: skip


def test_only_takes_a_part() -> None:
    grid = changed("concepts", 0, "seeds", to=[0, 1], of=changed("methods", to=["esd-x-1", "sdd"], of=BOTH))
    plan = plan_of(grid)
    assert len(select(plan, []).rows) == len(plan.rows)
    part = select(plan, ["method=sdd", "seed=0"]).rows
    assert {(row.method, row.seed) for row in part} == {("sdd", 0)}
    assert len(select(plan, ["seed=0", "seed=1", "attack=before", "model=original"]).rows) == 2


def test_only_takes_a_cell_and_what_it_needs() -> None:
    """Nothing that needs it: an erased model without its attacks."""
    plan = plan_of(changed("methods", to=["esd-x-1", "sdd"], of=BOTH))
    for kind, needs in {"erase": {"pictures"}, "attack": {"pictures", "erase", "data"}}.items():
        cell = next(cell for cell in plan.cells.values() if cell.kind == kind)
        part = select(plan, [f"cell={cell.name}"])
        assert part == ([], [cell])
        assert {other.kind for other in plan.with_needs(part.cells)} == {kind, *needs}
    row = plan.rows[0]
    assert select(plan, [f"cell={row.cell.name}"]) == ([row], [row.cell])
    part = select(plan, ["cell=erase", "method=sdd"])
    assert {cell.labels["method"] for cell in part.cells} == {"sdd"}
    assert len(part.cells) == 2


def test_only_of_nothing_is_refused() -> None:
    """The original is attacked by nobody."""
    with pytest.raises(UserError, match="nothing of the grid is all of model=original, attack=HRM-m"):
        select(plan_of(BOTH), ["model=original", "attack=HRM-m"])


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("methd=sdd", "Did you mean 'method'"),
        ("seed", "expected KEY=VALUE"),
        ("seed=7", "no seed '7'"),
        ("method=esd-x-2", "Did you mean 'esd-x-1'"),
        ("cell=erase-zz", "no cell"),
    ],
)
def test_only_refuses(only: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        select(plan_of(TINY), [only])
    assert "--only" in str(error.value)


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("methds",), [], "Did you mean 'methods'"),
        (("attacks", 0, "step"), [1], r"grid.*unknown key 'attacks.0.step'.*Did you mean 'steps'"),
        (("measure", "before", "unrelatd"), 1, "Did you mean 'unrelated'"),
        (("concepts", 0, "name"), "knive", "Did you mean 'knife'"),
        (("concepts", 0, "steps"), [2, 1], "ascending"),
        (("concepts", 0, "steps"), [], "needs steps"),
        (("attacks",), [TINY["attacks"][0]] * 2, "a name of its own"),
        (("base",), "some/model", "for tasks of Canvas only"),
        (("models",), ["relearned"], "models"),
    ],
)
def test_grids_that_cannot_be_are_refused(tmp_path: Path, path: tuple[Any, ...], to: Any, says: str) -> None:
    file = write_recipe(tmp_path / "grid.toml", changed(*path, to=to))
    with pytest.raises(UserError, match=says):
        read_bench(str(file))


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("methods",), ["esd-q-1"], "unknown method 'esd-q-1'"),
        (("set", "stepz"), 1, "Did you mean 'steps'"),
        (("attacks", 0, "set", "optimiser"), "sgd", "Did you mean 'optimizer'"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_the_plan(path: tuple[Any, ...], to: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        plan_of(changed(*path, to=to))


def test_a_recipe_without_a_grid_is_refused() -> None:
    with pytest.raises(UserError, match="table1-canvas"):
        read_bench("small")


def test_settings_pass_as_set_says_them() -> None:
    mixture = [
        {"optimizer": "adamw", "learning_rate": 7e-4, "steps": 3},
        {"optimizer": "sgd", "learning_rate": 1e-05, "steps": 1},
    ]
    said = as_overrides({"steps": 5, "stratified": False, "meta_gradient": "first-order", "attackers": mixture})
    found = resolve(EraseSettings, {**read_recipe("small").erase, **parse_overrides(said)})
    assert (found.steps, found.stratified, found.meta_gradient) == (5, False, "first-order")
    assert [attacker.model_dump() for attacker in found.attackers] == mixture


def test_what_a_concept_says_of_finetuning_is_not_for_words() -> None:
    """Words are found at the authors' rate of 0.01, whatever the concept's rate for weights is."""
    attack = {"name": "words", "kind": "unlearndiffatk", "prompts": {"texts": ["a knife"]}}
    (row,) = [row for row in plan_of(changed("attacks", to=[attack])).rows if row.attack == "words"]
    assert row.cell.spec["settings"]["learning_rate"] == 0.01


def test_the_closer_a_setting_is_said_the_more_it_counts() -> None:
    """Of a grid, of its concept, of a method for it, of a variant; of a concept's attack and of the attack itself."""
    grid = changed("concepts", 0, "set", to={"steps": 5, "batch_size": 4})
    grid = changed("concepts", 0, "by_method", to={"esd-x-1": {"steps": 7, "learning_rate": 2e-5}}, of=grid)
    grid = changed("variants", to=[{"name": "v", "set": {"learning_rate": 3e-5}}], of=grid)
    grid = changed("attacks", 0, "set", to={"learning_rate": 9e-4}, of=grid)
    cells = plan_of(grid).cells.values()
    (erased,) = [cell for cell in cells if cell.kind == "erase"]
    (attacked,) = [cell for cell in cells if cell.kind == "attack"]
    said = parse_overrides(erased.call["overrides"])
    assert {key: float(said[key]) for key in ("steps", "batch_size", "learning_rate")} == {
        "steps": 7, "batch_size": 4, "learning_rate": 3e-5,
    }  # fmt: skip
    assert float(parse_overrides(attacked.call["overrides"])["learning_rate"]) == 9e-4


def test_every_cell_runs_with_the_seed_of_its_row() -> None:
    """Not only the keys, which differ anyway where the erased model does."""
    plan = plan_of(changed("concepts", 0, "seeds", to=[3, 4]))
    seeded = {kind: set[int]() for kind in ("pictures", "data", "erase", "attack")}
    for cell in plan.cells.values():
        if cell.kind in seeded:
            assert cell.call["seed"] == cell.spec["seed"] == cell.labels["seed"], cell.kind
            seeded[cell.kind].add(cell.call["seed"])
    assert all(seeds == {3, 4} for seeds in seeded.values())


def test_a_cell_of_pictures_is_as_large_as_its_three_sets() -> None:
    """Of the concept, of what is related and of what is not."""
    sizes = changed("set", "retain_images", to=7, of=changed("set", "forget_images", to=5))
    [cell] = [cell for cell in plan_of(sizes).cells.values() if cell.kind == "pictures"]
    assert cell.size == 5 + 7 + 7


def test_the_last_checkpoint_is_the_last_place() -> None:
    grid = resolve(Grid, changed("concepts", 0, "steps", to=[1, 2, 5], of=TINY))
    assert [(state.step, place_of(grid, state)) for state in states(grid)] == [
        (0, "before"), (1, "between"), (2, "between"), (5, "last"),
    ]  # fmt: skip
