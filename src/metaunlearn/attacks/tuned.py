"""The networks that an attacker finetunes: the denoiser, and perhaps the text encoder with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import ImageText
from metaunlearn.data.latents import LatentSet
from metaunlearn.data.sampling import independent_rows
from metaunlearn.diffusion import Batch
from metaunlearn.models.sd import StableDiffusion
from metaunlearn.parameters import Params, subset

TEXT = "text_encoder."
"""Prefix of the text encoder's names among what is trained."""


@dataclass(frozen=True)
class Captioned:
    """Encoded pictures, and their captions as token ids for a text encoder that moves."""

    latents: LatentSet
    ids: Tensor
    """(P, T), one row for each row of ``latents.cond``."""

    @classmethod
    def encode(cls, model: StableDiffusion, pictures: ImageText) -> Captioned:
        """Encode ``pictures`` once."""
        latents = LatentSet.encode(model, pictures.images, pictures.texts)
        return cls(latents, model.token_ids(list(dict.fromkeys(pictures.texts))))


class Tuned:
    """theta, and psi where the text encoder is trained too, as the attack moves them."""

    def __init__(self, model: StableDiffusion, which: str, *, text_encoder: bool) -> None:
        self.model = model
        self.theta: Params = model.parameters()
        self.psi: Params | None = model.text_parameters() if text_encoder else None
        self.trained = {name: self.theta[name] for name in sorted(subset(self.theta, which))}
        if self.psi is not None:
            self.trained |= {TEXT + name: self.psi[name] for name in sorted(self.psi)}

    @property
    def changed(self) -> tuple[str, ...]:
        """The pipeline's components that are trained."""
        return ("unet",) if self.psi is None else ("unet", "text_encoder")

    def draw(self, data: Captioned, count: int, generator: torch.Generator) -> Batch:
        """``count`` pictures with fresh noise, their captions as the text encoder now encodes them."""
        rows = independent_rows(len(data.latents), count, generator)
        batch = data.latents.batch(rows, generator, stratified=False)
        if self.psi is None:
            return batch
        return batch._replace(cond=self.model.encode_tokens(data.ids[data.latents.prompt_of[rows]], self.psi))

    def write(self) -> None:
        """Put theta and psi into the pipeline."""
        self.model.load_parameters(self.theta)
        if self.psi is not None:
            self.model.load_text_parameters(self.psi)
