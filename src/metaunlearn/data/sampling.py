"""Which pictures a batch is made of: drawn afresh each time, or epoch by epoch.

Without replacement a set is gone through in an order of its own for every epoch. Orders and positions follow from the
run's seed and from how many batches there were before, so a resumed run keeps no state for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metaunlearn.checkpoint import step_generator


class Sampler(Protocol):
    """Rows of a set for one batch."""

    def __call__(self, stream: str, turn: int, size: int, count: int, generator: torch.Generator) -> Tensor:
        """``count`` rows of a set of ``size`` pictures: (count,) int64 in [0, size).

        ``stream`` names what the batch is for, and ``turn`` is how many batches of ``count`` it has had before.
        """
        ...


def independent_rows(size: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) rows, no two alike where there are enough; they have nothing to do with any other batch."""
    if count <= size:
        return torch.randperm(size, generator=generator)[:count]
    return torch.randint(size, (count,), generator=generator)


@dataclass(frozen=True)
class Independent:
    """Every batch from the whole set."""

    def __call__(self, stream: str, turn: int, size: int, count: int, generator: torch.Generator) -> Tensor:
        return independent_rows(size, count, generator)


@dataclass(frozen=True)
class Epochs:
    """Every picture once, then every picture once more in another order; a batch may end one epoch and begin the next.

    ``generator`` is left as it is.
    """

    seed: int

    def __call__(self, stream: str, turn: int, size: int, count: int, generator: torch.Generator) -> Tensor:
        if count == 0:
            return torch.empty(0, dtype=torch.int64)
        first = turn * count
        epochs = range(first // size, (first + count - 1) // size + 1)
        rows = torch.cat([self.order(stream, epoch, size) for epoch in epochs])
        return rows[first % size :][:count]

    def order(self, stream: str, epoch: int, size: int) -> Tensor:
        """(size,) every row once."""
        return torch.randperm(size, generator=step_generator(self.seed, epoch, f"order {stream}"))
