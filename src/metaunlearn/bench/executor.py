"""Who makes the cells: this process, one after another. Others (a pool, a cluster) need the same three functions."""

from __future__ import annotations

from typing import Protocol

from metaunlearn.bench.cells import Cell
from metaunlearn.bench.store import Store
from metaunlearn.bench.work import Outcome, make
from metaunlearn.runs import Progress


class Executor(Protocol):
    """Takes cells whose needs are whole. Several on one output folder share the work: a cell's lock is its maker's."""

    def free(self) -> bool:
        """Whether another cell may be submitted now."""
        ...

    def submit(self, cell: Cell) -> None:
        """Have ``cell`` made by :func:`metaunlearn.bench.work.make`."""
        ...

    def finished(self) -> list[Outcome]:
        """Wait until at least one submitted cell has ended; the outcomes of those that have. Empty: none was left."""
        ...


class Local:
    """Makes one cell at a time, here."""

    def __init__(self, store: Store, *, device: str = "cpu", progress: Progress | None = None) -> None:
        self._store, self._device, self._progress = store, device, progress
        self._waiting: list[Cell] = []

    def free(self) -> bool:
        """Whether no cell is waiting."""
        return not self._waiting

    def submit(self, cell: Cell) -> None:
        """Keep ``cell`` for :meth:`finished`."""
        self._waiting.append(cell)

    def finished(self) -> list[Outcome]:
        """Make what was submitted."""
        waiting, self._waiting = self._waiting, []
        return [make(self._store, cell, device=self._device, progress=self._progress) for cell in waiting]
