"""The networks that an attacker finetunes: the denoiser, and perhaps the text encoder with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import ImageText
from metaunlearn.data.latents import LatentSet
from metaunlearn.data.sampling import independent_rows
from metaunlearn.diffusion import Batch, part
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.tokens import TokenModel, token_model
from metaunlearn.parameters import Params, subset
from metaunlearn.processes import ALONE, Processes

TEXT = "text_encoder."
"""Prefix of the text encoder's names among what is trained."""
TRAINING_IT = "training the text encoder (text_encoder, --set text_encoder=true)"


@dataclass(frozen=True)
class Captioned:
    """Encoded pictures, and their captions as token ids where the text encoder moves."""

    latents: LatentSet
    ids: Tensor | None
    """(P, T), one row for each row of ``latents.cond``; None: those rows are what the text encoder says throughout."""


class Tuned:
    """theta, and psi where the text encoder is trained too, as the attack moves them."""

    def __init__(
        self, model: TextToImageModel, which: str, *, text_encoder: bool, processes: Processes = ALONE
    ) -> None:
        self.model, self.processes = model, processes
        self.theta: Params = model.parameters()
        self.text: TokenModel | None = token_model(model, TRAINING_IT) if text_encoder else None
        self.psi: Params = {} if self.text is None else self.text.text_parameters()
        self.trained = {name: self.theta[name] for name in sorted(subset(self.theta, which))}
        self.trained |= {TEXT + name: self.psi[name] for name in sorted(self.psi)}

    @property
    def changed(self) -> tuple[str, ...]:
        """The pipeline's components that are trained."""
        return ("unet",) if self.text is None else ("unet", "text_encoder")

    def encode(self, pictures: ImageText) -> Captioned:
        """Encode ``pictures`` once."""
        latents = LatentSet.encode(self.model, pictures.images, pictures.texts)
        distinct = list(dict.fromkeys(pictures.texts))
        return Captioned(latents, None if self.text is None else self.text.token_ids(distinct))

    def draw(self, data: Captioned, count: int, generator: torch.Generator) -> Batch:
        """``count`` pictures with fresh noise, their captions as the text encoder now encodes them.

        Of several processes each gets its own rows.
        """
        rows = independent_rows(len(data.latents), count, generator)
        own = self.processes.own(count)
        batch, rows = part(data.latents.batch(rows, generator, stratified=False), own.start, own.stop), rows[own]
        if self.text is None or data.ids is None:
            return batch
        return batch._replace(cond=self.text.encode_tokens(data.ids[data.latents.prompt_of[rows]], self.psi))

    def write(self) -> None:
        """Put theta and psi into the pipeline."""
        self.model.load_parameters(self.theta)
        if self.text is not None:
            self.text.load_text_parameters(self.psi)
