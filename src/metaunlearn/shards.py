"""Tensors of which each process holds a piece (torch's ``DTensor``, cut along the first dimension), and what needs all.

Arithmetic element by element is each process's own, on its pieces as plain tensors (:func:`own`, :func:`as_pieces`): of
a ``DTensor`` torch works out anew for every operation, and for every number in it, how the result is cut. What sums
over elements, or wants the whole tensor, needs the other processes: all of them must then ask at once. A plain tensor
is its own piece, and nothing is sent for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard

from metaunlearn.errors import RunError, first_line

AGAIN = "What is complete was kept: run the same command again with --resume (resume=True)."


def are_pieces(tensors: Iterable[Tensor]) -> bool:
    """Whether any of ``tensors`` is a piece of a larger one."""
    return any(isinstance(x, DTensor) for x in tensors)


def own(x: Tensor) -> Tensor:
    """This process's piece of ``x``, in the same memory."""
    if not isinstance(x, DTensor):
        return x
    with torch.no_grad():  # Cut from the graph: what is done on pieces is done on what is a constant by then.
        return x.to_local()


def as_pieces(found: Iterable[Tensor], like: Iterable[Tensor]) -> list[Tensor]:
    """What was worked out of this process's pieces of ``like``, one for each of them, as pieces themselves."""
    return [
        DTensor.from_local(x, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
        if isinstance(p, DTensor)
        else x
        for x, p in zip(found, like, strict=True)
    ]


def summed(of_pieces: Tensor, like: Iterable[Tensor]) -> Tensor:
    """The sum over processes of ``of_pieces``, which each made of its pieces of ``like``."""
    if not are_pieces(like):
        return of_pieces
    with answered():
        dist.all_reduce(of_pieces)
    return of_pieces


def whole(x: Tensor) -> Tensor:
    """All of ``x``, in every process."""
    if not isinstance(x, DTensor):
        return x
    with answered():
        return _detached(x).full_tensor()


def piece(x: Tensor, like: Tensor) -> Tensor:
    """This process's piece of the whole tensor ``x``, cut and placed as ``like`` is."""
    if not isinstance(like, DTensor):
        return x.to(like.device)
    mesh = like.device_mesh
    pieces, rank = x.chunk(mesh.size()), mesh.get_local_rank()
    mine = pieces[rank] if rank < len(pieces) else x[:0]
    local = mine.to(like.to_local().device).clone()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=x.shape, stride=x.stride())


def _detached(x: DTensor) -> DTensor:
    return cast(DTensor, x.detach())


@contextlib.contextmanager
def answered(*, computing: bool = False) -> Iterator[None]:
    """Around whatever needs the other processes: one that is gone ends the run with a message.

    ``computing``: around a computation that asks them on its way, whose own errors are no sign of a death.
    """
    try:
        yield
    except RuntimeError as error:
        if computing and not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        said = first_line(error)
        raise RunError(f"another process of this run died or does not answer ({said}). {AGAIN}") from error
