"""Where the adjoint keeps the M parameter sets of the inner loop: on the device, or in host memory.

The way back reads them last in, first out, one at a time. At M = 5 they are five times the denoiser's parameters, 17 GB
of float32 for Stable Diffusion 1.4; in host memory they cost the device one set at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
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


class HostMemory:
    """A stack whose newest set stays on its device, while those below lie in host memory.

    The newest is what the inner loop stands on (theta_m) or has just computed (g_m); moving it out would only bring it
    back. Tensors of ``alive`` are on the device anyway: where a set shares them (theta_0, and what P freezes) nothing
    is moved. Host memory is pinned where there is CUDA, so that copies run at full speed and in the stream's order.
    The values are the same bits either way.
    """

    def __init__(self, alive: Params) -> None:
        self._alive = alive
        self._newest: Params | None = None
        self._below: list[dict[str, tuple[Tensor, torch.device]]] = []
        """Each set's own tensors, and where they came from; the others are those of ``alive``."""

    def append(self, params: Params) -> None:
        """Keep ``params`` where they are, and move what was the newest set out."""
        if self._newest is not None:
            self._below.append(
                {
                    name: (self._moved_out(p), p.device)
                    for name, p in self._newest.items()
                    if p is not self._alive.get(name)
                }
            )
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
        return self._alive | {
            name: self._brought_back(p, device) for name, (p, device) in self._below[position].items()
        }

    def __len__(self) -> int:
        return len(self._below) + (self._newest is not None)

    def _moved_out(self, p: Tensor) -> Tensor:
        """A tensor on the host. On a CPU that is where it is."""
        if p.device.type != "cuda":
            return p.to("cpu")
        host = torch.empty_like(p, device="cpu", pin_memory=True)
        return host.copy_(p, non_blocking=True)

    def _brought_back(self, p: Tensor, device: torch.device) -> Tensor:
        # Ordered behind the copy out: both are on the device's current stream.
        return p.to(device, non_blocking=True)


STORES: dict[Literal["device", "host"], Store] = {"device": on_device, "host": HostMemory}
"""What ``inner_store`` may be named."""
