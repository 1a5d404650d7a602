"""Pictures with captions, encoded once: latents and prompts that every loss draws its batches from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.data.sampling import independent_rows
from metaunlearn.diffusion import Batch, draw_timesteps
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.prompt_length import warn_of_too_long


@dataclass(frozen=True)
class LatentSet:
    """N encoded pictures; a batch draws a fresh latent from each one's posterior, as SD's training does."""

    mean: Tensor
    """(N, C, h, w), scaled."""
    std: Tensor
    """(N, C, h, w), scaled."""
    cond: Conditioning
    """P rows: each distinct prompt, encoded."""
    prompt_of: Tensor
    """(N,) row of ``cond`` for each picture."""
    timesteps: int
    """Training timesteps of the schedule."""
    empty: Conditioning | None = None
    """One row: what some of the pictures of a batch come with in place of their prompt; None: none of them does."""
    dropout: float = 0.0
    """How likely that is for a picture."""
    texts: tuple[str, ...] = ()
    """The P prompts themselves."""
    weights: Tensor | None = None
    """(N,) what each picture weighs in L_retain; None: all weigh the same."""

    @classmethod
    def encode(cls, model: TextToImageModel, images: Tensor, texts: Sequence[str]) -> LatentSet:
        """Encode ``images`` (N, 3, H, W) in [-1, 1] with their ``texts``."""
        mean, std = model.encode_images(images)
        distinct = list(dict.fromkeys(texts))
        warn_of_too_long(model.pipeline, distinct)
        rows = {text: row for row, text in enumerate(distinct)}
        return cls(
            mean=mean,
            std=std,
            cond=model.encode_prompts(distinct),
            prompt_of=torch.tensor([rows[text] for text in texts]),
            timesteps=model.schedule.timesteps,
            texts=tuple(distinct),
        )

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, count: int, generator: torch.Generator, *, stratified: bool = True) -> Batch:
        """``count`` pictures, without replacement where there are enough, with fresh noise and timesteps."""
        return self.batch(independent_rows(len(self), count, generator), generator, stratified=stratified)

    def batch(self, rows: Tensor, generator: torch.Generator, *, stratified: bool = True) -> Batch:
        """These pictures, with fresh noise and timesteps."""
        shape, device = (len(rows), *self.mean.shape[1:]), self.mean.device
        x_0 = self.mean[rows] + self.std[rows] * torch.randn(shape, generator=generator).to(device)
        eps = torch.randn(shape, generator=generator).to(device)
        t = draw_timesteps(len(rows), self.timesteps, generator, stratified=stratified).to(device)
        return Batch(x_0=x_0, cond=self._prompts(rows, generator), eps=eps, t=t)

    def _prompts(self, rows: Tensor, generator: torch.Generator) -> Conditioning:
        """Those of these pictures, some of them dropped."""
        cond = self.cond[self.prompt_of[rows]]
        if self.empty is None:
            return cond
        dropped = torch.rand(len(rows), generator=generator) < self.dropout
        chosen = torch.where(dropped, len(rows), torch.arange(len(rows)))
        return Conditioning.cat([cond, self.empty])[chosen]


@dataclass(frozen=True)
class ErasureData:
    """The pictures that an outer step of Algorithm 1 draws from."""

    forget: LatentSet
    """D_FT: pictures of the concept, what an attacker would finetune on."""
    related: LatentSet
    """Retained pictures that are related to the concept."""
    unrelated: LatentSet
    """Retained pictures that are not."""
