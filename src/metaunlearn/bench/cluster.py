"""Cells made on a Ray cluster. Every machine must see the output folder under the same path, and have this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaunlearn.bench.cells import Cell
from metaunlearn.bench.store import Store
from metaunlearn.bench.work import Outcome, make
from metaunlearn.errors import UserError

EXTRA = "ray"
"""The extra of this package that brings Ray."""


class Cluster:
    """An executor that keeps as many cells under way as the cluster has processors, or GPUs with a CUDA device."""

    def __init__(self, store: Store, *, address: str, device: str = "cpu") -> None:
        """``address`` as Ray takes it: ``auto``, ``HOST:PORT``, or ``local`` for this machine alone."""
        self._ray = _ray()
        try:
            if not self._ray.is_initialized():
                self._ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"there is no Ray cluster at {address!r} (ray=..., --ray ADDRESS): {error}. "
                "'local' starts one on this machine."
            ) from error
        self._out, self._device = store.out.resolve(), device
        self._resource = "GPU" if device.startswith("cuda") else "CPU"
        wanted = {"num_gpus": 1} if self._resource == "GPU" else {"num_cpus": 1}
        # Not tried again by Ray: the cell is, by the next call, and goes on where its process died.
        self._make = self._ray.remote(max_retries=0, **wanted)(_make)
        self._running: dict[Any, Cell] = {}

    def free(self) -> bool:
        """Whether the cluster has room for one cell more."""
        return len(self._running) < int(self._ray.cluster_resources().get(self._resource, 0))

    def submit(self, cell: Cell) -> None:
        """Send ``cell`` to some machine."""
        self._running[self._make.remote(self._out, cell, self._device)] = cell

    def finished(self) -> list[Outcome]:
        """Wait for the first cell that ends."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        return [self._outcome(task) for task in ready]

    def _outcome(self, task: Any) -> Outcome:
        cell = self._running.pop(task)
        try:
            outcome: Outcome = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            return Outcome(cell, "failed", f"{type(error).__name__}: {error}")
        return outcome


def _make(out: Path, cell: Cell, device: str) -> Outcome:
    """On a worker."""
    return make(Store(out), cell, device=device)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            f"a grid over several machines (ray=..., --ray ADDRESS) needs Ray: pip install 'metaunlearn[{EXTRA}]'."
        ) from error
    return ray
