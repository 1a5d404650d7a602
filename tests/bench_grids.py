"""A tiny grid on Canvas for the tests of bench: what it is, how to change it, and made-up results of it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metaunlearn.bench.plan import Plan, Row, make_plan, states
from metaunlearn.bench.recipe import BenchRecipe, Grid
from metaunlearn.bench.results import Found, Measured, Results
from metaunlearn.bench.state import State
from metaunlearn.bench.store import Store
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.overrides import as_toml
from metaunlearn.report.page import build_report
from metaunlearn.settings import resolve
from report_fixtures import draw_picture

TINY: dict[str, Any] = {
    "methods": ["esd-x-1"],
    "models": ["meta-unlearn"],
    "set": {
        "steps": 4, "batch_size": 2, "forget_images": 2, "retain_images": 2, "bank_trajectories": 2, "bank_steps": 2,
        "inner_steps": 1, "inner_optimizer": "sgd", "meta_gradient": "first-order", "checkpoint_every": 1,
    },
    "concepts": [{"name": "knife", "steps": [1, 2], "attack": {"learning_rate": 1e-4, "checkpoint_every": 1}}],
    "attacks": [{"name": "HRM-m", "data": "hrm-m", "pictures": 2}],
    "measure": {
        "before": {"concept": 2, "related": 1, "unrelated": 1},
        "between": {"concept": 1, "related": 0, "unrelated": 0},
        "last": {"concept": 1, "related": 0, "unrelated": 0},
        "shown": 1,
    },
}  # fmt: skip
"""Seven cells: pictures, data, one erased model, one attack, three states."""
CELLS = 7


def changed(*path: Any, to: Any, of: dict[str, Any] = TINY) -> dict[str, Any]:
    """A copy of ``of`` with the value at ``path`` replaced."""
    grid = copy.deepcopy(of)
    place: Any = grid
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[path[-1]] = to
    return grid


def plan_of(grid: dict[str, Any]) -> Plan:
    """Its plan."""
    return make_plan(resolve(Grid, grid))


def counted(plan: Plan) -> dict[str, int]:
    """How many cells of each kind."""
    return dict(Counter(cell.kind for cell in plan.cells.values()))


def write_recipe(file: Path, grid: dict[str, Any]) -> Path:
    """``grid`` as a recipe's file, every value on one line."""
    lines = ['description = "Tiny."', 'command = "metaunlearn bench FILE --out DIR"', "[grid]"]
    file.write_text(
        "\n".join([*lines, *(f"{key} = {as_toml(value)}" for key, value in grid.items())]) + "\n", encoding="utf-8"
    )
    return file


GRID = changed("concepts", 0, "seeds", to=[0, 1], of=changed("models", to=["unlearn", "meta-unlearn"]))
SEEN = {
    "unlearn": {("before", 0): (1, 3), ("HRM-m", 1): (4, 6), ("HRM-m", 2): (8, 10)},
    "meta-unlearn": {("before", 0): (0, 0), ("HRM-m", 1): (1, 0), ("HRM-m", 2): (2, 1)},
}
"""Pictures of ten in which the concept is seen, seeds 0 and 1."""


def score(value: float, n: int = 10, judge: str = "canvas") -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "n": n, "protocol": {"judge": judge}, "raw": []}


def write_scores(store: Store, row: Row, **scores: dict[str, Any]) -> None:
    folder = store.folder(row.cell.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"scores": scores}))


def made_up(out: Path) -> Results:
    """``GRID`` in ``out``, where every state has the scores of ``SEEN``."""
    plan, store = plan_of(GRID), Store(out)
    for row in plan.rows:
        hits = SEEN[row.model][row.attack, row.step][row.seed]
        write_scores(store, row, concept=score(10.0 * hits), fid=score(1.0 + row.seed))
    return Results(BenchRecipe("tiny", "Tiny.", "", resolve(Grid, GRID)), plan, store)


def found_with(given: list[tuple[str, str, str, int, float]], **change: Any) -> Found:
    """``given`` are rows (method, model, attack, step, percent of ten pictures) of the concept, by nobody."""
    measured = []
    grid = resolve(Grid, GRID)
    for method, model, attack, step, value in given:
        (state,) = [
            one for one in states(grid)
            if (one.method, one.model, one.attack, one.step, one.seed) == (method, model, attack, step, 0)
        ]  # fmt: skip
        score = {"value": value, "low": value, "high": value, "n": 10, "hits": round(value / 10), "protocol": "p"}
        measured.append(Measured(state, "measure-0", {"concept": score}))
    facts: dict[str, Any] = {
        "bench": "tiny", "description": "", "overrides": (), "grid": grid, "rows_in_all": 12, "rows": measured,
        "protocols": {}, "versions": {}, **change,
    }  # fmt: skip
    return Found(**facts)


def found_by(grid: dict[str, Any], scored: Callable[[State], Mapping[str, float] | None]) -> Found:
    """States of ``grid`` with the percentages of ten pictures that ``scored`` gives; None: not measured."""
    resolved, rows = resolve(Grid, grid), []
    every = list(states(resolved))
    for number, state in enumerate(every):
        scores = scored(state)
        if scores is not None:
            more = {"n": 10, "protocol": "p"}
            made = {
                name: {"value": value, "low": value, "high": value, "hits": round(value / 10), **more}
                for name, value in scores.items()
            }
            rows.append(Measured(state, f"measure-{number}", made))
    return Found(
        bench="tiny", description="", overrides=(), grid=resolved, rows_in_all=len(every), rows=rows, protocols={},
        versions={},
    )  # fmt: skip


def write_results(out: Path, results: Results, **change: Any) -> dict[str, Any]:
    """``results.json`` as bench leaves it, with the keys of ``change`` replaced."""
    record = {**results.found().to_dict(), **change}
    (out / "results.json").write_text(json.dumps(record))
    return record


def keep_pictures(out: Path, results: Results, *, prompt: str = "a knife in noto style", **more: Any) -> None:
    """Two pictures of the concept in every cell, as ``measure`` keeps them, and ``cell.json`` with its needs."""
    for row in results.plan.rows:
        cell = out / "cells" / row.cell.name
        (cell / "samples").mkdir()
        samples = []
        for seed in (7, 8):
            draw_picture("concept", row.step / 10, seed).save(cell / "samples" / f"concept-{seed}.png")
            samples.append({"role": "concept", "prompt": prompt, "seed": seed, "file": f"concept-{seed}.png", **more})
        scores = json.loads((cell / "scores.json").read_text())
        (cell / "scores.json").write_text(json.dumps({**scores, "samples": samples}))
        for part in results.plan.with_needs([row.cell]):
            folder = out / "cells" / part.name
            folder.mkdir(exist_ok=True)
            (folder / "cell.json").write_text(json.dumps(part.record()))


ATTACKS = [{"name": name, "data": "hrm-m", "pictures": 2} for name in ("HRM-m", "fast", "slow", "late", "odd", "last")]
MANY = changed("attacks", to=[*ATTACKS, {"name": "CLEAN", "data": "clean"}], of=GRID)
MANY |= {"models": ["original", "unlearn", "meta-unlearn"]}
MANY["concepts"][0]["steps"] = [1, 2, 3, 4]
"""Six malicious attacks and a benign one: walls of 17 strips, tables that are read downwards."""
PERCENT = {
    ("unlearn", "HRM-m"): (40, 90, 0, 0), ("unlearn", "fast"): (70, 80, 0, 0),
    ("meta-unlearn", "HRM-m"): (10, 30, 0, 0), ("meta-unlearn", "fast"): (20, 5, 0, 0),
}  # fmt: skip
"""After one step to four; anything else is 0."""


def many() -> dict[str, Any]:
    """``results.json`` of ``MANY``, every state of seed 0 measured."""
    grid = resolve(Grid, MANY)
    rows = []
    for number, state in enumerate(one for one in states(grid) if one.seed == 0):
        percent = (0, *PERCENT.get((state.model, state.attack), (0, 0, 0, 0)))  # Before any attack nothing is seen.
        value = float(percent[int(state.step)])
        score = {"value": value, "low": value, "high": value, "n": 10, "hits": round(value / 10), "protocol": "p"}
        rows.append(Measured(state, f"measure-{number}", {"concept": score}))
    found = Found(
        bench="tiny", description="Tiny.", overrides=(), grid=grid, rows_in_all=len(rows), rows=rows, protocols={},
        versions={},
    )  # fmt: skip
    return found.to_dict()


def write_many(out: Path) -> Path:
    """The page of :func:`many`, each state with four pictures."""
    record = many()
    (out / "results.json").write_text(json.dumps(record))
    for place, row in enumerate(record["rows"]):
        cell = out / "cells" / row["cell"]
        (cell / "samples").mkdir(parents=True)
        samples = []
        for seed in range(4):
            Image.new("RGB", (16, 16), (place, 60 * seed, 90)).save(cell / "samples" / f"{seed}.png")
            samples.append({"role": "concept", "prompt": "a knife", "seed": seed, "file": f"{seed}.png"})
        (cell / "scores.json").write_text(json.dumps({"samples": samples}))
    return build_report(out)


def cells_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are made of nothing from now on, and no page of them: what is left is the keeping of them."""

    def empty(folder: Path, **_: Any) -> None:
        (folder / SCORES_FILE).write_text(json.dumps({"scores": {}}))

    for kind in ("pictures", "data", "erase", "attack", "measure"):
        monkeypatch.setattr(f"metaunlearn.bench.kinds.{kind}.make", empty)
    monkeypatch.setattr("metaunlearn.bench.run.build_report", lambda folder: folder / "report.html")
