"""The machine: what is installed on it, and how much memory it has."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from metaunlearn.runs import package_version

REQUIRED = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "numpy", "pillow", "pydantic",
    "jinja2", "vl-convert-python", "typer", "rich", "tqdm",
)  # fmt: skip
OPTIONAL = {
    "peft": ("lora-merge", "lora"),
    "nudenet": ("the metric nudity", "nudenet"),
    "onnxruntime": ("the metric nudity", "nudenet"),
    "bitsandbytes": ("outer_optimizer=adamw-8bit", "8bit"),
    "optuna": ("tune", "search"),
    "ray": ("bench --ray", "ray"),
    "scipy": ("the sampler lms", "lms"),
    "tensorboard": ("--tracker tensorboard", "trackers"),
    "wandb": ("--tracker wandb", "trackers"),
    "trackio": ("--tracker trackio", "trackers"),
    "resvg-py": ("rebuilding Canvas", "canvas"),
}
"""Packages that something works without: what needs them, and the extra that brings them."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, as far as a job cares."""

    python: str
    system: str
    cores: int
    """Cores that this process may use."""
    memory_bytes: int | None
    """RAM in all; None where the system does not say."""
    accelerators: tuple[str, ...]
    packages: dict[str, str | None]
    """Version by name of what is needed; None: missing."""
    optional: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def inspect_machine() -> Machine:
    """What is installed and what the hardware is."""
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    return Machine(
        python=platform.python_version(),
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_ram(),
        accelerators=tuple(accelerators),
        packages={name: package_version(name) for name in REQUIRED},
        optional={name: package_version(name) for name in OPTIONAL},
    )


def memory_of(device: str) -> int | None:
    """Bytes of the GPU's memory in all, of RAM elsewhere; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[1]
    return _ram()


def free_memory(device: str) -> int | None:
    """Bytes that a new process could have there now; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _ram() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
