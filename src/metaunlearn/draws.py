"""Which pictures to make: each a prompt, a seed and a guidance scale with nothing left open; and making them.

Pictures are made batch by batch and never all held: a set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import RunError
from metaunlearn.generation import BATCH, generate_images


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One picture to make."""

    text: str
    seed: int
    guidance_scale: float
    label: str | None = None
    """What a judge should see in it."""
    role: str | None = None
    """Which part of a benchmark it belongs to; see :mod:`metaunlearn.metrics.unlearncanvas`."""


def draws_for(prompts: Sequence[Prompt], *, images: int, seed: int, guidance_scale: float) -> list[Draw]:
    """``images`` draws of each prompt, in order.

    Draw j of prompt i has the prompt's own seed + j, or ``seed`` + i * ``images`` + j; the prompt's own guidance goes
    before ``guidance_scale``.
    """
    return [
        Draw(
            text=prompt.text,
            seed=(seed + i * images if prompt.seed is None else prompt.seed) + j,
            guidance_scale=guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale,
            label=prompt.label,
            role=prompt.role,
        )
        for i, prompt in enumerate(prompts)
        for j in range(images)
    ]


def batches(draws: Sequence[Draw]) -> list[list[int]]:
    """Indices of draws that go through a pipeline together: it takes one guidance scale at a time."""
    by_guidance: dict[float, list[int]] = {}
    for index, draw in enumerate(draws):
        by_guidance.setdefault(draw.guidance_scale, []).append(index)
    return [
        indices[first : first + BATCH] for indices in by_guidance.values() for first in range(0, len(indices), BATCH)
    ]


def draw_batch(pipeline: Any, draws: Sequence[Draw], batch: Sequence[int], *, steps: int | None = None) -> Tensor:
    """The pictures of one of :func:`batches`, (B, 3, H, W) in [0, 1]; RunError when the model makes no finite ones."""
    images = generate_images(
        pipeline,
        [draws[index].text for index in batch],
        [draws[index].seed for index in batch],
        steps=steps,
        guidance_scale=draws[batch[0]].guidance_scale,
    )
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise RunError(f"{broken} of {len(images)} generated images are not finite numbers: the model is damaged.")
    return images
