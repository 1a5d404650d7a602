"""A fake pipeline that paints one picture a seed at once, for tests of what happens around generating."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from colours import ColourJudge
from metaunlearn.data.prompts import Prompt
from metaunlearn.evaluation import Evaluation, plan


class Painter:
    """Stands in for ``draws.generate_images``: a ramp, its colour and brightness by the seed."""

    def __init__(self, size: int, *, pause: float = 0.0) -> None:
        self.size = size
        self.pause = pause
        self.drawn: list[int] = []
        """Seeds so far."""

    def __call__(self, pipeline: object, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
        time.sleep(self.pause)
        self.drawn.extend(seeds)
        images = torch.linspace(0, 0.5, self.size).expand(len(seeds), 3, self.size, self.size).clone()
        for image, seed in zip(images, seeds, strict=True):
            image[seed % 3] += 0.3 + (seed % 7) / 50
        return images

    @property
    def pipeline(self) -> Any:
        """As much of a pipeline as is looked at before pictures are made."""
        unet = SimpleNamespace(config=SimpleNamespace(sample_size=self.size // 8))
        return SimpleNamespace(config={}, unet=unet, vae_scale_factor=8)

    def evaluation(self, count: int, reference: Path) -> Evaluation:
        """Of ``count`` pictures of one prompt, by rows and by features."""
        return plan(
            self.pipeline,
            [Prompt("red")],
            metrics=["concept", "clip-score", "fid", "kid"],
            judge=ColourJudge(),
            concept="red",
            reference=reference,
            images_per_prompt=count,
        )
