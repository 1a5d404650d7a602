"""Making one cell: under its lock, in a folder that gets its name when it is whole."""

from __future__ import annotations

import shutil
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from metaunlearn.bench.cells import Cell
from metaunlearn.bench.store import Store
from metaunlearn.errors import MetaunlearnError, UserError
from metaunlearn.runs import Progress


@dataclass(frozen=True)
class Outcome:
    """What became of a submitted cell."""

    cell: Cell
    state: Literal["made", "there", "busy", "failed"]
    """``there``: another process made it since it was submitted; ``busy``: another process is making it."""
    message: str = ""
    """Why it failed."""
    seconds: float = 0.0


def make(store: Store, cell: Cell, *, device: str = "cpu", progress: Progress | None = None, task: str = "") -> Outcome:
    """Make ``cell``, whose needs must be whole, or go on with it where a killed process left it.

    ``task``: what its lock says of who asked for it.
    """
    with store.locks.held(cell.name, task) as mine:
        if not mine:
            return Outcome(cell, "busy")
        if store.whole(cell.name):
            return Outcome(cell, "there")
        began = time.monotonic()
        try:
            _fill(store, cell, device, progress)
        except MetaunlearnError as error:
            return Outcome(cell, "failed", str(error))
        except Exception as error:  # Memory that ran out, a mistake of ours: the other cells are none the worse for it.
            file = store.complain(cell.name, traceback.format_exc())
            return Outcome(cell, "failed", f"{type(error).__name__}: {error} ({file} says where)")
        seconds = time.monotonic() - began
        store.finish(cell, seconds=seconds, device=device)
        return Outcome(cell, "made", seconds=seconds)


def _fill(store: Store, cell: Cell, device: str, progress: Progress | None) -> None:
    maker = import_module(f"metaunlearn.bench.kinds.{cell.kind}").make
    partial = store.partial(cell.name)
    inputs = {role: store.folder(name) for role, name in cell.needs.items()}
    begun = partial.exists()
    partial.mkdir(parents=True, exist_ok=True)
    try:
        maker(partial, **cell.call, **inputs, device=device, progress=progress)
    except UserError:
        # A run that was begun under settings without influence on the result, such as checkpoint_every, is not
        # resumed under others.
        if not begun:
            raise
        shutil.rmtree(partial)
        partial.mkdir()
        maker(partial, **cell.call, **inputs, device=device, progress=progress)
