"""Which pictures to make: each a prompt, a seed and a guidance scale with nothing left open; and making them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import load_tensors, save_tensors
from metaunlearn.data.prompts import Prompt
from metaunlearn.generation import BATCH, generate_images


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
    kept: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """One picture for each draw, in order: (N, 3, H, W) in [0, 1].

    ``kept`` is a folder that gets each finished batch; batches that lie there are not drawn again, so that a run that
    was killed goes on. It must not be shared by other draws.
    """
    pictures: dict[int, Tensor] = {}
    for number, batch in enumerate(_batches(draws)):
        file = None if kept is None else kept / f"{number:05d}.safetensors"
        if file is not None and file.exists():
            made = load_tensors(file)[0]["pictures"]
        else:
            made = generate_images(
                pipeline,
                [draws[index].text for index in batch],
                [draws[index].seed for index in batch],
                steps=steps,
                guidance_scale=draws[batch[0]].guidance_scale,
            )
            if file is not None:
                save_tensors(file, {"pictures": made})
        pictures.update(zip(batch, made, strict=True))
        if progress is not None:
            progress(len(pictures), len(draws))
    return torch.stack([pictures[index] for index in range(len(draws))])


def _batches(draws: Sequence[Draw]) -> list[list[int]]:
    """Indices of draws that go through a pipeline together: it takes one guidance scale at a time."""
    by_guidance: dict[float, list[int]] = {}
    for index, draw in enumerate(draws):
        by_guidance.setdefault(draw.guidance_scale, []).append(index)
    return [
        indices[first : first + BATCH] for indices in by_guidance.values() for first in range(0, len(indices), BATCH)
    ]
