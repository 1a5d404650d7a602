"""Target pictures of an attack on prompts: what the model before the erasing draws for a prompt, or given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metaunlearn.data.imagefolder import fingerprint, read_imagefolder
from metaunlearn.draws import Draw
from metaunlearn.errors import UserError
from metaunlearn.generation import default_sampling, generate_images
from metaunlearn.models import adapt, read_only
from metaunlearn.models.interface import TextToImageModel


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Where a prompt's target latent comes from."""

    model: TextToImageModel
    """The erased model, whose autoencoder encodes the pictures."""
    base: TextToImageModel | None
    given: dict[str, Tensor]
    """Pictures (3, H, W) in [-1, 1] by caption; empty when ``base`` draws them."""
    description: str
    """For a score's protocol."""

    def latent(self, draw: Draw) -> Tensor:
        """z_0, (1, C, h, w): the mean of the autoencoder's posterior, scaled."""
        if self.base is None:
            picture = self.given[draw.text][None]
        else:
            pipeline = self.base.pipeline
            steps = default_sampling(pipeline).steps
            drawn = generate_images(pipeline, [draw.text], [draw.seed], steps=steps, guidance_scale=draw.guidance_scale)
            picture = drawn * 2 - 1
        return self.model.encode_images(picture)[0]


def targets_of(model: TextToImageModel, base: Any, data: Path | None, texts: Sequence[str]) -> Targets:
    """Targets from one of ``base`` and ``data``; UserError unless they serve every text."""
    if (base is None) == (data is None):
        raise UserError(
            "the attack needs a target picture for each prompt: give the model before the erasing (base=, --base "
            "MODEL), or pictures with the prompts as their captions (data=, --data DIR), and not both."
        )
    if data is not None:
        pictures = read_imagefolder(data, size=model.image_size)
        given = dict(zip(reversed(pictures.texts), reversed(list(pictures.images)), strict=True))  # the first one wins
        missing = [text for text in texts if text not in given]
        if missing:
            raise UserError(
                f"{data} (data=, --data) has no picture with the caption {missing[0]!r}, nor for {len(missing) - 1} "
                "other prompts; name the model before the erasing instead (base=, --base MODEL)."
            )
        return Targets(model=model, base=None, given=given, description=f"pictures {fingerprint(data)}")
    before = adapt(read_only(base, device=model.device), model.device)
    if before.image_size != model.image_size:
        raise UserError(
            f"the base model (base=, --base) draws pictures of {before.image_size} pixels and MODEL of "
            f"{model.image_size}; give the model from which MODEL was erased."
        )
    return Targets(model=model, base=before, given={}, description=f"drawn by {before.fingerprint()}")
