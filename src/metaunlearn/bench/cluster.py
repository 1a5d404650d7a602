"""Cells made on a Ray cluster. Every machine must see the output folder under the same path, and have this package.

A cell asks for what the doctor counts that it needs: a GPU, memory, and as many processors as this process takes
threads. It computes with as many threads wherever it runs, so that its bits are those of a local run.
"""

from __future__ import annotations

import logging
import os
import platform
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metaunlearn.bench.cells import Cell, kind_of_device
from metaunlearn.bench.needs import PROCESS, Needs
from metaunlearn.bench.plan import Plan
from metaunlearn.bench.store import Store
from metaunlearn.bench.work import Outcome, make
from metaunlearn.errors import UserError
from metaunlearn.locks import HEARTBEAT

EXTRA = "ray"
"""The extra of this package that brings Ray."""
LOSSES = 3
"""So often a cell's worker may be lost; once more, and the cell has failed."""
QUIET = 3 * HEARTBEAT
"""Seconds without a touch of its lock after which a machine that Ray has given up counts as gone."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    """A cell under way."""

    cell: Cell
    name: str
    """Of this one attempt; its lock bears it."""


class Cluster:
    """An executor that keeps as many cells under way as the cluster has GPUs, or processors for; a cell whose worker is
    lost is made again, and goes on where that left it."""

    def __init__(self, store: Store, plan: Plan, *, address: str, device: str = "cpu") -> None:
        """``address`` as Ray takes it: ``auto``, ``HOST:PORT``, or ``local`` for this machine alone."""
        check_kind(device)
        self._ray = _ray()
        try:
            if not self._ray.is_initialized():
                here = {"include_dashboard": False} if address == "local" else {}
                self._ray.init(address=address, log_to_driver=False, **here)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"there is no Ray cluster at {address!r} (ray=..., --ray ADDRESS): {error}. "
                "'local' starts one on this machine."
            ) from error
        self._store, self._device = store, device
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu and not self._largest("GPU"):
            raise UserError(
                f"no machine of the Ray cluster at {address!r} has a GPU (device={device!r}, --device): start workers "
                "on machines that have one (ray start --address ... --num-gpus ...), or call with --device cpu."
            )
        self._needs, self._threads = Needs(plan, device), torch.get_num_threads()
        # Not tried again by Ray, which knows nothing of locks.
        self._make = self._ray.remote(max_retries=0)(_make)
        self._running: dict[Any, _Task] = {}
        self._losses: Counter[str] = Counter()
        self._outgrown: Counter[str] = Counter()
        """How often a cell took more memory than there was."""

    def free(self) -> bool:
        """Whether the cluster has room for one cell more; Ray itself keeps back what memory is short for."""
        here = self._ray.cluster_resources()
        places = here.get("GPU", 0) if self._on_gpu else here.get("CPU", 0) / self._processors()
        return len(self._running) < max(1, int(places))

    def submit(self, cell: Cell) -> None:
        """Send ``cell`` to some machine."""
        task = _Task(cell, uuid.uuid4().hex)
        remote = self._make.options(**self._wanted(cell))
        self._running[remote.remote(self._store.out.resolve(), cell, self._device, task.name, self._threads)] = task

    def finished(self) -> list[Outcome]:
        """Wait for the first cell that ends; those of lost workers are sent again, and are none of them."""
        outcomes: list[Outcome] = []
        while self._running and not outcomes:
            self._ray.wait(list(self._running), num_returns=1)
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            outcomes = self._outcomes({reference: self._running.pop(reference) for reference in ready})
        return outcomes

    def _outcomes(self, ended: dict[Any, _Task]) -> list[Outcome]:
        errors = self._ray.exceptions
        outcomes: list[Outcome] = []
        lost: dict[str, tuple[_Task, Exception]] = {}
        for reference, task in ended.items():
            try:
                outcomes.append(self._ray.get(reference))
            except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
                lost[task.cell.name] = (task, error)
            except errors.RayError as error:
                outcomes.append(_failed(task.cell, error))
        silent = any(isinstance(why, errors.NodeDiedError) for _, why in lost.values())
        if lost:
            self._store.locks.drop({name: task.name for name, (task, _) in lost.items()}, quiet=silent * QUIET)
        for name, (task, why) in lost.items():
            self._losses[name] += 1
            self._outgrown[name] += isinstance(why, errors.OutOfMemoryError)
            if self._losses[name] > LOSSES:
                outcomes.append(_failed(task.cell, why, f", the last of {LOSSES + 1} workers that were lost"))
                continue
            logger.warning("%s: its worker was lost (%s); it is made again", name, type(why).__name__)
            self.submit(task.cell)
        return outcomes

    def _wanted(self, cell: Cell) -> dict[str, Any]:
        """What Ray is asked for, and no more than its largest machine has: counts are no more than estimates. Where
        memory ran out, twice as much is asked for."""
        need = self._needs.of(cell)
        memory = (PROCESS if need is None else need.host_bytes) * 2 ** self._outgrown[cell.name]
        on_gpu = self._on_gpu and need is not None and need.accelerator
        return {
            "num_cpus": 1 if self._on_gpu else self._processors(),
            "num_gpus": int(on_gpu),
            "memory": min(memory, int(self._largest("memory"))),
        }

    def _processors(self) -> int:
        """Of one cell on CPUs."""
        return max(1, min(self._threads, int(self._largest("CPU"))))

    def _largest(self, resource: str) -> float:
        """The most of it that one machine has."""
        nodes = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        return max((float(resources.get(resource, 0)) for resources in nodes), default=0.0)


def check_kind(device: str) -> None:
    """UserError when ``device`` says more than which kind a worker's is."""
    if device != kind_of_device(device):
        raise UserError(
            f"a worker of a Ray cluster (ray=..., --ray) has one GPU, which Ray chooses; got device={device!r} "
            f"(--device): say which kind alone, --device {kind_of_device(device)}."
        )


def _failed(cell: Cell, error: Exception, more: str = "") -> Outcome:
    return Outcome(cell, "failed", f"{type(error).__name__}{more}: {error}")


def _make(out: Path, cell: Cell, device: str, task: str, threads: int) -> Outcome:
    """On a worker, which may have made other cells before."""
    torch.set_num_threads(threads)
    found = make(Store(out), cell, device=device, task=task)
    return replace(found, message=f"{platform.node()}: {found.message}") if found.state == "failed" else found


def _ray() -> Any:
    # Ray would tell its makers of each cluster that is started; nothing is sent unless the user says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            f"a grid over several machines (ray=..., --ray ADDRESS) needs Ray: pip install 'metaunlearn[{EXTRA}]'."
        ) from error
    return ray
