"""The networks that an attacker finetunes: the denoiser, and perhaps the text encoders with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import ImageText
from metaunlearn.data.latents import LatentSet
from metaunlearn.data.sampling import independent_rows
from metaunlearn.diffusion import Batch, part
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, subset
from metaunlearn.processes import ALONE, Processes


@dataclass(frozen=True)
class Captioned:
    """Encoded pictures, and their captions as token ids where the text encoders move."""

    latents: LatentSet
    ids: Tensor | None
    """(P, encoders, T), a row for each row of ``latents.cond``; None: those rows are what is heard throughout."""


class Tuned:
    """theta, and psi where the text encoders are trained too, as the attack moves them."""

    def __init__(
        self, model: TextToImageModel, which: str, *, text_encoder: bool, processes: Processes = ALONE
    ) -> None:
        self.model, self.processes = model, processes
        self.theta: Params = model.parameters()
        self.psi: Params = model.text_parameters() if text_encoder else {}
        self.trained = {name: self.theta[name] for name in sorted(subset(self.theta, which))}
        self.trained |= {name: self.psi[name] for name in sorted(self.psi)}

    @property
    def changed(self) -> tuple[str, ...]:
        """The pipeline's components that are trained."""
        return ("unet", *self.model.text_encoders) if self.psi else ("unet",)

    def encode(self, pictures: ImageText) -> Captioned:
        """Encode ``pictures`` once."""
        latents = LatentSet.encode(self.model, pictures.images, pictures.texts)
        distinct = list(dict.fromkeys(pictures.texts))
        return Captioned(latents, self.model.token_ids(distinct) if self.psi else None)

    def draw(self, data: Captioned, count: int, generator: torch.Generator) -> Batch:
        """``count`` pictures with fresh noise, their captions as the text encoders now encode them.

        Of several processes each gets its own rows.
        """
        rows = independent_rows(len(data.latents), count, generator)
        own = self.processes.own(count)
        batch, rows = part(data.latents.batch(rows, generator, stratified=False), own.start, own.stop), rows[own]
        if data.ids is None:
            return batch
        return batch._replace(cond=self.model.encode_tokens(data.ids[data.latents.prompt_of[rows]], self.psi))

    def write(self) -> None:
        """Put theta and psi into the pipeline."""
        self.model.load_parameters(self.theta)
        self.model.load_text_parameters(self.psi)
