"""Where the adjoint keeps the M parameter sets of the inner loop: on the device, in host memory, or on disk.

The way back reads them last in, first out, one at a time. At M = 5 they are five times the denoiser's parameters, 17 GB
of float32 for Stable Diffusion 1.4; elsewhere they cost the device one set at most.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from metaunlearn.parameters import Params


class Sets(Protocol):
    """Parameter sets in order, to look at."""

    def __getitem__(self, index: int, /) -> Params:
        """Set ``index``; whoever keeps no name for it keeps it on the device no longer than it takes."""
        ...

    def __len__(self) -> int: ...


class Stack(Sets, Protocol):
    """A ``list[Params]`` as far as the inner loop uses one."""

    def append(self, params: Params, /) -> None:
        """Keep one more set."""
        ...

    def pop(self) -> Params:
        """Take the newest set out."""
        ...


Store = Callable[[Params], Stack]
"""An empty stack, given the parameters that live on the device anyway."""


def on_device(_: Params) -> Stack:
    """A list."""
    return []


Back = Callable[[], Iterator[tuple[str, Tensor]]]
"""Brings a set's bits back to where they were, tensor by tensor, as often as wanted."""

Move = Callable[[Params], Back]
"""Takes a set off the device."""


class Elsewhere:
    """A stack whose newest set stays on its device, while those below lie where ``move`` puts them.

    The newest is what the inner loop stands on (theta_m) or has just computed (g_m); moving it out would only bring it
    back. Tensors of ``alive`` are on the device anyway: where a set shares them (theta_0, and what P freezes) nothing
    is moved.
    """

    def __init__(self, alive: Params, move: Move) -> None:
        self._alive, self._move = alive, move
        self._newest: Params | None = None
        self._below: list[Back] = []
        """What brings back each set's own tensors; the others are those of ``alive``."""

    def append(self, params: Params) -> None:
        """Keep ``params`` where they are, and move what was the newest set out."""
        if self._newest is not None:
            own = {name: p for name, p in self._newest.items() if p is not self._alive.get(name)}
            self._below.append(self._move(own))
        self._newest = params

    def pop(self) -> Params:
        """The newest set; the one below it stays out until it is asked for."""
        newest = self[-1]
        if self._newest is not None:
            self._newest = None
        else:
            del self._below[-1]
        return newest

    def __getitem__(self, index: int) -> Params:
        """Set ``index``, brought back if it is out; the stack goes on holding it where it was."""
        position = range(len(self))[index]
        if self._newest is not None and position == len(self._below):
            return self._newest
        return self._alive | dict(self._below[position]())

    def __len__(self) -> int:
        return len(self._below) + (self._newest is not None)

    @contextmanager
    def lent(self, params: Params, names: Iterable[str]) -> Iterator[Params]:
        """``params`` themselves, of which those of ``names`` lie elsewhere meanwhile, and are put back bit by bit."""
        back = self._move({name: params[name] for name in names})
        try:
            yield params
        finally:
            for name, p in back():
                params[name].detach().copy_(p)


def to_host(params: Params) -> Back:
    """Into host memory, pinned where there is CUDA, so that copies run at full speed and in the stream's order."""
    moved = {name: (_on_host(p), p.device) for name, p in params.items()}
    # Ordered behind the copy out: both are on the device's current stream.
    return lambda: ((name, p.to(device, non_blocking=True)) for name, (p, device) in moved.items())


def _on_host(p: Tensor) -> Tensor:
    """A tensor on the host. On a CPU that is where it is."""
    if p.device.type != "cuda":
        return p.to("cpu")
    host = torch.empty_like(p, device="cpu", pin_memory=True)
    return host.copy_(p, non_blocking=True)


class ToDisk:
    """Into files of a temporary folder (``TMPDIR``), which goes when nobody needs them any more."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="metaunlearn-"))
        self._count = 0
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __call__(self, params: Params) -> Back:
        """Into one file."""
        file, self._count = self._folder / f"{self._count}.safetensors", self._count + 1
        save_file({name: p.detach().contiguous() for name, p in params.items()}, file)
        devices = {name: p.device for name, p in params.items()}

        def back() -> Iterator[tuple[str, Tensor]]:
            # The folder stays as long as this function does.
            with safe_open(self._folder / file.name, framework="pt") as handle:
                for name, device in devices.items():
                    yield name, handle.get_tensor(name).to(device)

        return back


def host_memory(alive: Params) -> Stack:
    """All sets but the newest in host memory; where that is the device's own, a list."""
    if any(p.device.type == "cpu" for p in alive.values()):
        return []
    return Elsewhere(alive, to_host)


def on_disk(alive: Params) -> Stack:
    """All sets but the newest on disk."""
    return Elsewhere(alive, ToDisk())


STORES: dict[Literal["device", "host", "disk"], Store] = {"device": on_device, "host": host_memory, "disk": on_disk}
"""What ``inner_store`` may be named."""

Borrow = Callable[[Params, Iterable[str]], AbstractContextManager[Params]]
"""A set with the values of the first, of which those of the names may be moved in place until it is given back."""


@contextmanager
def copied(params: Params, names: Iterable[str]) -> Iterator[Params]:
    """A copy of what may be moved."""
    yield params | {name: params[name].clone() for name in names}


@contextmanager
def given(params: Params, _: Iterable[str]) -> Iterator[Params]:
    """The set itself, which nobody needs afterwards."""
    yield params


def taken(stack: Stack) -> tuple[Params, Borrow]:
    """The newest set, taken out, and how it may be moved: theta_0, the last of all, belongs to whoever began there."""
    last, params = len(stack) == 1, stack.pop()
    if not last:
        return params, given
    return params, stack.lent if isinstance(stack, Elsewhere) else copied
