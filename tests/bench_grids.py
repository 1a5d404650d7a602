"""A tiny grid on Canvas for the tests of bench: what it is, and how to change it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from metaunlearn.bench.plan import Plan, make_plan
from metaunlearn.bench.recipe import Grid, as_toml
from metaunlearn.settings import resolve

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


def write_recipe(file: Path, grid: dict[str, Any]) -> Path:
    """``grid`` as a recipe's file, every value on one line."""
    lines = ['description = "Tiny."', 'command = "metaunlearn bench FILE --out DIR"', "[grid]"]
    file.write_text("\n".join([*lines, *(f"{key} = {as_toml(value)}" for key, value in grid.items())]) + "\n")
    return file
