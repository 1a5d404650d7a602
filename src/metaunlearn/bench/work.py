"""Making one cell: under its lock, in a folder that gets its name when it is whole."""

from __future__ import annotations

import shutil
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from metaunlearn.bench.cells import Cell, check_code, kind_of_device
from metaunlearn.bench.identity import check_inputs
from metaunlearn.bench.resolved import check_packages, check_recipe
from metaunlearn.bench.store import Store
from metaunlearn.errors import MetaunlearnError, UserError
from metaunlearn.runs import NotThisRunError, Progress


@dataclass(frozen=True)
class Outcome:
    """What became of a submitted cell."""

    cell: Cell
    state: Literal["made", "there", "busy", "gone", "failed"]
    """``there``: another process made it since it was submitted; ``busy``: another process is making it; ``gone``: a
    cell that it needs was dropped meanwhile."""
    message: str = ""
    """Why it failed."""
    seconds: float = 0.0


class _LostError(Exception):
    """The lock was broken, and another process makes the cell."""


def make(store: Store, cell: Cell, *, device: str = "cpu", progress: Progress | None = None, task: str = "") -> Outcome:
    """Make ``cell``, whose needs must be whole, or go on with it where a killed process left it.

    ``device`` is of the kind that the cell was planned for. ``task``: what its lock says of who asked for it.
    """
    if cell.device not in ("", kind_of_device(device)):
        raise ValueError(f"{cell.name} is one of {cell.device}, and would be made on {device}.")
    with store.locks.held(cell.name, task, cell.needs.values()) as mine:
        if not mine:
            return Outcome(cell, "busy")
        if store.complete(cell.name):
            return Outcome(cell, "there")
        # What is whole now stays: nobody drops what a living lock needs.
        return _try(store, cell, device, progress) if _can_be_made(store, cell) else Outcome(cell, "gone")


def _can_be_made(store: Store, cell: Cell) -> bool:
    return all(store.complete(name) for name in cell.needs.values())


def _try(store: Store, cell: Cell, device: str, progress: Progress | None) -> Outcome:
    began = time.monotonic()

    def watched(label: str, done: int, total: int) -> None:
        if not store.locks.owned(cell.name):
            raise _LostError
        if progress is not None:
            progress(label, done, total)

    try:
        check_code(cell)
        check_packages(cell)
        check_recipe(cell)
        check_inputs(cell)
        _fill(store, cell, device, watched)
        _check_again(store, cell)
        seconds = time.monotonic() - began
        mine = store.finish(cell, seconds=seconds, device=device)
    except Exception as error:  # Memory that ran out, a mistake of ours: the other cells are none the worse for it.
        if not store.locks.owned(cell.name):
            return Outcome(cell, "busy")
        if not _can_be_made(store, cell):
            return Outcome(cell, "gone")
        if isinstance(error, MetaunlearnError):
            return Outcome(cell, "failed", str(error))
        file = store.complain(cell.name, traceback.format_exc())
        return Outcome(cell, "failed", f"{type(error).__name__}: {error} ({file} says where)")
    return Outcome(cell, "made", seconds=seconds) if mine else Outcome(cell, "busy")


def _check_again(store: Store, cell: Cell) -> None:
    """UserError where what ``cell`` reads was replaced while it was made; nothing goes on from such work."""
    try:
        check_inputs(cell)
    except UserError:
        if store.locks.owned(cell.name):
            shutil.rmtree(store.partial(cell.name))
        raise


def _fill(store: Store, cell: Cell, device: str, progress: Progress) -> None:
    maker = import_module(f"metaunlearn.bench.kinds.{cell.kind}").make
    partial = store.partial(cell.name)
    inputs = {role: store.folder(name) for role, name in cell.needs.items()}
    partial.mkdir(parents=True, exist_ok=True)
    try:
        maker(partial, **cell.call, **inputs, device=device, progress=progress)
    except NotThisRunError:
        # A run that was begun under settings without influence on the result, such as checkpoint_every, is not
        # resumed under others; nor is one that was killed before it said what it is.
        shutil.rmtree(partial)
        partial.mkdir()
        maker(partial, **cell.call, **inputs, device=device, progress=progress)
