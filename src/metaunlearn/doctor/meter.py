"""Seconds and peak memory of a call, on a CPU or an accelerator."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

REPEATS = 3
"""Timings behind a median, of calls that are quick."""
PATIENCE = 5.0
"""Seconds after which a call is not repeated any more."""
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Meter:
    """Of one device; ``clock`` in seconds."""

    def __init__(self, device: str | torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = torch.device(device), clock

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of a few calls, after one to warm up."""
        call()
        times: list[float] = []
        while len(times) < REPEATS and sum(times) < PATIENCE:
            times.append(self.once(call))
        return statistics.median(times)

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of one call, as it comes."""
        began = self._now()
        call()
        return self._now() - began

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock()

    @property
    def sees_memory(self) -> bool:
        """Whether memory can be measured here: on CUDA, and of a process on Linux."""
        return self.device.type == "cuda" or (self.device.type == "cpu" and CLEAR_REFS.exists())

    def held(self) -> int:
        """Bytes that are there now: allocated on the GPU, or resident."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        trim()
        return _resident("VmRSS")

    def peak(self, call: Callable[[], object]) -> int:
        """Most bytes that were there during a call, above those before it."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        before = self.held()
        if self.device.type == "cpu":
            CLEAR_REFS.write_text("5", encoding="utf-8")  # The peak starts again from what is resident now.
        call()
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - before
        return _resident("VmHWM") - before


def trim() -> None:
    """Freed memory that malloc holds back would hide what a call needs; where malloc is another one, nothing."""
    if sys.platform == "linux":
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back is not None:
            give_back(0)


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
