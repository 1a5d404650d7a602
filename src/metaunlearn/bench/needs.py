"""What a cell takes of memory and time, by the doctor's count: no cell has to have run.

Erasing is the doctor's own estimate. Everything else is counted from one forward pass of the denoiser and from the
weights: an attack that trains holds the denoiser, its gradient and two moments beside the pipeline, one that does not
holds a second model; drawing, and measuring on Canvas, samples pictures. What scores pictures that are drawn is given
room for the largest judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from metaunlearn.attacks.registry import strengths_of
from metaunlearn.bench.cells import NO_DEVICE, Cell
from metaunlearn.bench.plan import Plan
from metaunlearn.bench.recipe import CANVAS
from metaunlearn.doctor import EFFICIENCY, FLOAT32, estimate, forward_cost, matrix_speed, weights_bytes
from metaunlearn.generation import default_sampling
from metaunlearn.models import adapt, load_pipeline

TRAINED_COPIES = 4
"""Of the denoiser in an attack that trains: itself, its gradient, AdamW's two moments."""
PROCESS = 2**30
"""Bytes of a process with torch and nothing else."""
JUDGES = 4 * 2**30
"""Bytes for CLIP ViT-L/14 or the safety checker, in float32, Inception, and a batch of pictures in them."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one cell takes."""

    device_bytes: int
    """Peak on the device that it runs on."""
    host_bytes: int
    """Peak of RAM, the process itself included: on a CPU all of it, else the weights on their way to the device."""
    accelerator: bool
    """Whether it uses the device, if that is not the CPU."""
    seconds: float | None
    """By the device's speed, right to an order of magnitude; None: not counted, or there is no such device here."""


@dataclass(frozen=True)
class _Model:
    """What is counted of a base model, once."""

    pipeline: Any
    weights: int
    denoiser: int
    """Bytes of both."""
    forward: float
    """Operations of one forward pass on one picture."""
    kept: int
    """Bytes that autograd keeps of it."""
    steps: int
    """Of sampling a picture."""


class Needs:
    """Of the cells of one ``plan`` on ``device``. A base model is read for the first cell that needs it."""

    def __init__(self, plan: Plan, device: str = "cpu") -> None:
        self._plan, self._device = plan, device
        self._on_cpu = torch.device(device).type == "cpu"
        self._model = cache(_count)
        self._erasing = cache(self._estimate)
        self._speed = cache(lambda: matrix_speed(device) if _is_here(device) else None)

    def of(self, cell: Cell) -> Need | None:
        """None where what the cell needs is missing."""
        if cell.kind in NO_DEVICE:
            return Need(device_bytes=0, host_bytes=PROCESS, accelerator=False, seconds=0.0)
        base = self._base(cell)
        if base is None:
            return None
        if cell.kind == "evaluate":
            held = JUDGES if self._has_networks(cell) else 0
            return Need(device_bytes=held, host_bytes=held + PROCESS, accelerator=not self._on_cpu, seconds=None)
        if cell.kind == "erase":
            call = cell.call
            memory, seconds = self._erasing(
                base, call["method"], call["meta"], call["recipe"], tuple(call["overrides"])
            )
        else:
            memory, operations = self._counted(cell, self._model(base))
            speed = self._speed()
            seconds = None if speed is None or operations is None else operations / (speed * EFFICIENCY)
        host = memory if self._on_cpu else self._model(base).weights
        return Need(device_bytes=memory, host_bytes=host + PROCESS, accelerator=not self._on_cpu, seconds=seconds)

    @staticmethod
    def _has_networks(cell: Cell) -> bool:
        """Whether more than Canvas's judge, which is small, looks at the pictures of ``cell``."""
        return cell.call["judge"] != CANVAS or any(one["weights"] for one in cell.spec["sets"])

    def _base(self, cell: Cell) -> str | None:
        """The base model's path; an attack's is that of the erasing it starts from, that of what is scored the one that
        drew it."""
        needs = cell.needs
        origin = cell if "base" in cell.call else self._plan.cells[needs.get("erase", next(iter(needs.values())))]
        base: str = origin.call["base"]
        return None if origin.missing else base

    def _estimate(
        self, base: str, method: str, meta: bool, recipe: str, overrides: tuple[str, ...]
    ) -> tuple[int, float | None]:
        speed = self._speed()
        found = estimate(
            self._model(base).pipeline, method=method, meta=meta, recipe=recipe, overrides=overrides,
            device=self._device, speed=speed or 1.0, available_bytes=2**63,
        )  # fmt: skip
        return found.memory_bytes, None if speed is None else found.seconds

    @staticmethod
    def _counted(cell: Cell, model: _Model) -> tuple[int, float | None]:
        """Bytes and operations of a cell that is no erasing."""
        sampling = 2 * model.steps * model.forward  # Guided: two passes a step.
        if cell.kind not in ("attack", "donor"):
            models = 2 if cell.kind == "adversarial" else 1  # That one reads the base model, too.
            operations = None if cell.kind == "adversarial" else cell.size * sampling
            return models * model.weights + model.kept, operations
        settings = cell.spec["settings"]
        batch = settings.get("batch_size", 1)
        if cell.kind == "attack" and strengths_of(cell.spec["kind"]) is not None:
            return 2 * model.weights + batch * model.kept, None
        operations = cell.size * settings.get("accumulation", 1) * batch * 3 * model.forward
        return model.weights + TRAINED_COPIES * model.denoiser + batch * model.kept, operations


def _count(base: str) -> _Model:
    pipeline = load_pipeline(base)
    model = adapt(pipeline)
    forward, kept = forward_cost(model)
    return _Model(
        pipeline=pipeline,
        weights=weights_bytes(pipeline),
        denoiser=FLOAT32 * sum(p.numel() for p in model.unet.parameters()),
        forward=forward,
        kept=kept,
        steps=default_sampling(pipeline).steps,
    )


def _is_here(device: str) -> bool:
    kind, accelerator = torch.device(device).type, torch.accelerator.current_accelerator(check_available=True)
    return kind == "cpu" or (accelerator is not None and kind == accelerator.type)
