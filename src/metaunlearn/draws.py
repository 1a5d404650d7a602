"""Which pictures to make: each a prompt, a seed and a guidance scale with nothing left open; and making them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaunlearn.data.prompts import Prompt
from metaunlearn.generation import generate_images


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One picture to make."""

    text: str
    seed: int
    guidance_scale: float
    label: str | None = None
    """What a judge should see in it."""


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
        )
        for i, prompt in enumerate(prompts)
        for j in range(images)
    ]


def make_pictures(
    pipeline: Any,
    draws: Sequence[Draw],
    *,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One picture for each draw, in order: (N, 3, H, W) in [0, 1]. A pipeline takes one guidance scale at a time."""
    by_guidance: dict[float, list[int]] = {}
    for index, draw in enumerate(draws):
        by_guidance.setdefault(draw.guidance_scale, []).append(index)
    pictures: dict[int, Tensor] = {}
    for guidance_scale, indices in by_guidance.items():
        before = len(pictures)

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, len(draws))

        made = generate_images(
            pipeline,
            [draws[index].text for index in indices],
            [draws[index].seed for index in indices],
            steps=steps,
            guidance_scale=guidance_scale,
            progress=report,
        )
        pictures.update(zip(indices, made, strict=True))
    return torch.stack([pictures[index] for index in range(len(draws))])
