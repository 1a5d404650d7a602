"""``keep_checkpoints = false``: which attacks' models are dropped, and which another grid in ``OUT`` still needs.

Each grid that was called says in ``OUT/plans/RECIPE.json`` which cells it has and what they need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from metaunlearn.bench.cells import SCORES
from metaunlearn.bench.plan import Plan
from metaunlearn.bench.store import Store
from metaunlearn.files import read_json

Needed = Mapping[str, Sequence[str]]
"""By cell, the cells that it needs."""
STATES = tuple(f"{kind}-" for kind in SCORES)
"""Beginnings of the names of cells that a state is measured in."""


class Dropping:
    """Drops the attacks of one grid when nothing needs them any more."""

    def __init__(self, store: Store, recipe: str, plan: Plan, *, keep: bool) -> None:
        self._store, self._recipe, self._keep = store, recipe, keep
        self._cells: Needed = {name: list(cell.needs.values()) for name, cell in plan.cells.items()}
        self._file = store.plan_file(recipe)

    def announce(self) -> None:
        """Tell other grids what this one needs."""
        record = {"bench": self._recipe, "keep_checkpoints": self._keep, "cells": self._cells}
        self._store.write({self._file.name: json.dumps(record, indent=1) + "\n"}, self._file.parent)

    def drop(self, attack: str) -> None:
        """Drop ``attack``, unless the recipe keeps it or something needs it: a state that is not measured yet, of any
        grid that was called in ``OUT``, or a process at work (:meth:`Store.remove`)."""
        if not self._keep and attack not in self._waited_for(self._cells) and not self._elsewhere(attack):
            self._store.remove(attack)

    def _elsewhere(self, attack: str) -> bool:
        """Whether another grid keeps ``attack``, or still needs it."""
        for file in self._file.parent.glob("*.json"):
            if file.name[0] != "." and file.name != self._file.name:
                record = read_json(file)
                cells: Needed = record["cells"]
                if attack in (cells if record["keep_checkpoints"] else self._waited_for(cells)):
                    return True
        return False

    def _waited_for(self, cells: Needed) -> set[str]:
        """What has to be there for the states that are not measured yet."""
        found: set[str] = set()
        waiting = [name for name in cells if name.startswith(STATES) and not self._store.complete(name)]
        while waiting:
            needs = set(cells[waiting.pop()]) - found
            found |= needs
            waiting += [name for name in needs if not self._store.complete(name)]
        return found
