"""Starts from real pictures: the erased model only repaints them, so that half of the concept is there already.

``img2img`` noises a whole picture up to a strength and denoises it from there (SDEdit: Meng et al., ICLR 2022);
``inpaint`` does so to a square in the middle, and puts the rest back after every sampling step. Nothing of the model
changes: a strength leaves an imagefolder of the pictures that it made.

Shapes: B pictures (B, 3, H, W) in [0, 1], latents (B, C, h, w).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.attacks.interface import AttackTask, Input
from metaunlearn.checkpoint import step_generator
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.errors import UserError
from metaunlearn.generation import default_sampling
from metaunlearn.models import rebuilt
from metaunlearn.models.autoencoder import as_rgb, as_taken, decoding
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.unfiltered import unfiltered
from metaunlearn.settings import Settings

IMG2IMG = {"sd": StableDiffusionImg2ImgPipeline, "sdxl": StableDiffusionXLImg2ImgPipeline}
"""By the model's family."""

AfterStep = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""diffusers' ``callback_on_step_end``: pipeline, number, timestep and ``{"latents": ...}`` to the same, changed."""


class Img2Img(Settings):
    """Every picture of the attacker is noised and denoised under its caption, or under ``prompt``."""

    needs: ClassVar[tuple[Input, ...]] = ("data",)
    level: ClassVar[str] = "strength"
    strengths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75)
    leaves: ClassVar = "pictures"
    changed: ClassVar[tuple[str, ...]] = ()

    prompt: str | None = None
    """Instead of the captions."""
    batch_size: int = Field(default=8, gt=0)
    """Pictures in one forward pass."""

    @property
    def caption(self) -> str | None:
        """With a prompt, pictures need no captions."""
        return self.prompt

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """Strengths are shares of the noise, and must leave a sampling step to do."""
        steps = default_sampling(model.pipeline).steps
        if any(not 0 < strength <= 1 or int(steps * strength) < 1 for strength in strengths):
            raise UserError(
                f"strengths (strengths=, --strengths) must be from 1/{steps} (one of the model's sampling steps) to 1 "
                f"(next to nothing is left of the picture); got {', '.join(f'{s:g}' for s in strengths)}."
            )

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Repaint every picture; picture i has seed ``task.seed`` + i, whatever the strength."""
        pictures = task.data
        texts = pictures.texts if self.prompt is None else [self.prompt] * len(pictures.texts)
        made = []
        for first in range(0, len(texts), self.batch_size):
            rows = slice(first, first + self.batch_size)
            seeds = [task.seed + first + i for i in range(len(texts[rows]))]
            starts = (pictures.images[rows] + 1) / 2
            after = self._after_step(task.model, starts, seeds)
            made.append(repainted(task.model, starts, texts[rows], strength, seeds, after))
        write_imagefolder(folder, torch.cat(made).clamp(0, 1), texts, overwrite=True)
        return {"pictures": len(texts)}

    def _after_step(self, model: TextToImageModel, starts: Tensor, seeds: Sequence[int]) -> AfterStep | None:
        return None


class Inpaint(Img2Img):
    """A square in the middle of every picture is repainted; around it the picture stays, but for the autoencoder."""

    hole: float = Field(default=0.75, gt=0, le=1)
    """Side of the square, as a share of the picture's."""

    def _after_step(self, model: TextToImageModel, starts: Tensor, seeds: Sequence[int]) -> AfterStep:
        """Put back what is around the square, noised as much as the rest is.

        Not diffusers' own inpainting, which takes 4 latent channels only. The noise is of a stream of its own: a
        picture's seed begins the pipeline's.
        """
        x_0 = model.encode_images(starts * 2 - 1)[0]
        generators = [step_generator(seed, 0, "around the square") for seed in seeds]
        eps = torch.stack([torch.randn(x_0.shape[1:], generator=generator) for generator in generators]).to(x_0)
        mask = centre_mask(starts.shape[-1], self.hole, x_0.shape[-2:]).to(x_0)

        def put_back(pipeline: Any, number: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
            later = pipeline.scheduler.timesteps[pipeline.scheduler.timesteps < t]
            known = pipeline.scheduler.add_noise(x_0, eps, later[:1]) if len(later) else x_0
            return {"latents": torch.where(mask > 0, values["latents"], known)}

        return put_back


def centre_mask(size: int, hole: float, latent: Sequence[int]) -> Tensor:
    """(1, 1, h, w) for pictures of ``size`` pixels: 1 where a latent pixel touches the square, 0 around it.

    The square is centred; its side is ``hole`` * ``size``, rounded.
    """
    side = max(1, round(hole * size))
    first = (size - side) // 2
    mask = torch.zeros(1, 1, size, size)
    mask[..., first : first + side, first : first + side] = 1
    return F.adaptive_max_pool2d(mask, tuple(latent))


@torch.no_grad()
def repainted(
    model: TextToImageModel,
    starts: Tensor,
    texts: Sequence[str],
    strength: float,
    seeds: Sequence[int],
    after: AfterStep | None,
) -> Tensor:
    """``starts``, noised up to ``strength`` and denoised by the model's own sampler: (B, 3, H, W) in [0, 1].

    PNDM, which takes its second step twice, loses count when its first ones are left out, and one stride with it: DDIM
    then, on the same schedule.
    """
    sampling = default_sampling(model.pipeline)
    # These are squares; of a pipeline of oblong pictures diffusers makes no such pipeline.
    unet = copy.copy(model.unet)
    unet.register_to_config(sample_size=model.latent_shape[1])
    pipeline = rebuilt(model.pipeline, IMG2IMG[model.family], unet=unet)
    if isinstance(pipeline.scheduler, PNDMScheduler):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    with unfiltered(pipeline), decoding(pipeline.vae, len(starts), starts.shape[2] * starts.shape[3]):
        output = pipeline(
            list(texts),
            image=as_taken(pipeline.vae, starts),
            strength=strength,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
            callback_on_step_end=after,
        )
    return as_rgb(output.images.float().cpu())
