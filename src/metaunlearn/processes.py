"""Several processes that share one run, each with its own card: who does what, and all that passes between them.

Every process makes the same random draws, from the same generators, and computes with its own rows of each batch only.
Gradients are averaged where they are made (``SharedLoss``), so theta, and all that is computed from it, is the same
everywhere without being sent. The main process alone writes the run's folder.

``ALONE`` is one process: every method below then hands back what it is given, and nothing is imported or started.
The processes are started by ``accelerate launch`` or ``torchrun``; accelerate connects them.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from metaunlearn.devices import check_device
from metaunlearn.errors import MetaunlearnError, RunError, UserError
from metaunlearn.parameters import Loss, Params, SharedLoss
from metaunlearn.shards import AGAIN, answered, are_pieces

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for another one that neither answers nor is known to be dead."""
BUCKET = 2**24
"""Numbers that are averaged at once."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that share the run."""

    number: int = 0
    """From 0 to ``count`` - 1; 0 is the main process."""
    count: int = 1
    local: int = 0
    """The number among those on the same machine: which card is this one's."""

    @property
    def main(self) -> bool:
        """Whether this process writes the run's folder."""
        return self.number == 0

    def device(self, name: str | torch.device) -> str:
        """``cuda`` is this process's own card. UserError when there is no such device here."""
        name = str(name)
        if self.count > 1 and ":" in name:
            raise UserError(
                f"{self.count} processes cannot share the device {name!r} (device=..., --device); give it without a "
                "number, and each takes its own."
            )
        return check_device(name if self.count == 1 or name == "cpu" else f"{name}:{self.local}")

    def own(self, rows: int) -> slice:
        """This process's rows of a batch of ``rows``, which ``count`` must divide."""
        size = rows // self.count
        return slice(self.number * size, (self.number + 1) * size)

    def turns(self, count: int) -> range:
        """Which of ``count`` independent pieces of work, taken in turn, are this process's."""
        return range(self.number, count, self.count)

    def check_divides(self, rows: int, what: str) -> None:
        """UserError unless ``rows`` (``what`` says of what) can be shared out evenly."""
        if rows % self.count:
            raise UserError(
                f"{self.count} processes cannot share {what} of {rows} evenly; choose a multiple of {self.count} "
                "(--set batch_size=...), or start another number of processes."
            )

    def average(self, a: Params) -> Params:
        """The mean of every process's ``a``: the same bits everywhere.

        What each holds a piece of is a sharded model's gradient, which came into being as the mean.
        """
        if self.count == 1:
            return a
        averaged = {name: p for name, p in a.items() if are_pieces([p])}
        for names in _buckets({name: p for name, p in a.items() if name not in averaged}):
            flat = torch.cat([a[name].detach().reshape(-1) for name in names])
            pieces = (self._reduced(flat) / self.count).split([a[name].numel() for name in names])
            averaged |= {name: piece.view_as(a[name]) for name, piece in zip(names, pieces, strict=True)}
        return averaged

    def shared(self, loss: Loss) -> Loss:
        """``loss``, on this process's rows, as the mean over all processes, whose gradient is averaged."""
        return loss if self.count == 1 else SharedLoss(loss, self.average)

    def on_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, or raises, in the main process, for all of them; it must be small."""
        if self.count == 1:
            return make()
        value: Any = None
        failure: Exception | None = None
        if self.main:
            try:
                value = make()
            except Exception as error:  # The others wait for an answer: they get one, then it is raised.
                failure = error
        said: MetaunlearnError | None = None
        if failure is not None:
            said = failure if isinstance(failure, MetaunlearnError) else RunError("the main process failed.")
        answer, said = self._object((value, said), 0)
        if failure is not None or said is not None:
            raise failure or said or RunError("the main process failed.")
        made: T = answer
        return made

    def each(
        self, count: int, make: Callable[[int], Mapping[str, Tensor]], *, together: bool = False
    ) -> list[Mapping[str, Tensor]]:
        """``[make(0), ..., make(count - 1)]``: each is made by one process, and all processes get all of them.

        ``together``: making one takes all processes, each at its own, since the model that is asked is sharded.
        """
        if self.count == 1:
            return [make(index) for index in range(count)]
        mine = {index: make(index) for index in self.turns(count)}
        if together and len(mine) < math.ceil(count / self.count):
            make(count - 1)  # For the sake of the others, who have one more.
        return [self.broadcast(mine.get(index), index % self.count) for index in range(count)]

    def broadcast(self, tensors: Mapping[str, Tensor] | None, source: int = 0) -> Mapping[str, Tensor]:
        """The ``tensors`` of process ``source``; what the others give does not matter."""
        if self.count == 1:
            return tensors or {}
        mine = self.number == source
        shapes = {name: (x.shape, x.dtype, x.device.type) for name, x in (tensors or {}).items()} if mine else None
        found = {}
        for name, (shape, dtype, kind) in self._object(shapes, source).items():
            sent = tensors[name].to(self._channel) if mine and tensors is not None else None
            whole = torch.empty(shape, dtype=dtype, device=self._channel) if sent is None else sent.contiguous()
            with answered():
                dist.broadcast(whole, source)
            found[name] = whole.cpu() if kind == "cpu" else whole
        return found

    def of_others(self, make: Callable[[], T]) -> list[T]:
        """What ``make`` returns in each of the other processes; it must be small, for it is pickled."""
        if self.count == 1:
            return []
        made: list[Any] = [None] * self.count
        with answered():
            dist.all_gather_object(made, make())
        return [thing for number, thing in enumerate(made) if number != self.number]

    def highest(self, mine: Sequence[float]) -> list[float]:
        """The highest of every process's numbers, place by place."""
        if self.count == 1:
            return list(mine)
        found: list[float] = self._reduced(torch.tensor(mine, dtype=torch.float64), dist.ReduceOp.MAX).tolist()
        return found

    def wait(self) -> None:
        """Until all are here."""
        self.highest([0.0])  # Nobody has it before all have given theirs.

    def check_same(self, theta: Mapping[str, Tensor], step: int) -> None:
        """RunError unless theta is the same everywhere after ``step`` steps, as far as a checksum can tell.

        Pieces are held once, so there is nothing to compare.
        """
        if self.count == 1 or are_pieces(theta.values()):
            return
        sums = torch.stack([p.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64) for p in theta.values()])
        extremes = self._reduced(torch.cat([sums, -sums]), dist.ReduceOp.MAX)
        highest, lowest = extremes[: len(sums)], -extremes[len(sums) :]
        if not torch.equal(highest, lowest):
            raise RunError(
                f"the processes have different weights after step {step}: their cards, drivers or packages may not be "
                "alike. The last state in which they agreed was kept; go on with --resume on cards that are alike."
            )

    @property
    def _channel(self) -> torch.device:
        """Where tensors must lie to be sent."""
        return torch.device("cuda", self.local) if dist.get_backend() == "nccl" else torch.device("cpu")

    def _reduced(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Every process's ``x`` as one, on the device of this one's: a group of cards takes nothing from the host."""
        sent = x.to(self._channel)
        with answered():
            dist.all_reduce(sent, op=op)
            return sent.to(x.device)

    def _object(self, value: Any, source: int) -> Any:
        if self.count == 1:
            return value
        told = [value]
        with answered():
            dist.broadcast_object_list(told, source)
        return told[0]


ALONE = Processes()
"""The usual run."""


def join(device: str) -> Processes:
    """Connect this process with the others that a launcher started with it; ``ALONE`` if none were.

    ``device`` is the kind of device that they compute on, as ``--device`` has it.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # Which its launcher always sets.
            logger.info("accelerate started one process; more share the work with: accelerate launch --num_processes N")
        return ALONE
    from accelerate import PartialState

    with answered():
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _ended)
    atexit.register(state.destroy_process_group)
    logger.info("%d processes share the work, on %s", state.num_processes, device)
    return Processes(number=state.process_index, count=state.num_processes, local=state.local_process_index)


def _ended(number: int, frame: Any) -> None:
    """The launcher sends SIGTERM to those that are left when a process has died."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise RunError(f"another process of this run died, or the run was ended. {AGAIN}")


def _buckets(a: Params) -> Iterator[list[str]]:
    """Names of ``a`` in their order, of one dtype and at most about ``BUCKET`` numbers at a time."""
    names: list[str] = []
    size = 0
    for name, p in a.items():
        if names and (size + p.numel() > BUCKET or p.dtype != a[names[0]].dtype):
            yield names
            names, size = [], 0
        names.append(name)
        size += p.numel()
    if names:
        yield names
