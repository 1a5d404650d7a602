"""Stage 3: the denoiser, trained on latents of the frozen encoder and prompts of the frozen text tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from metaunlearn.canvas import scenes
from metaunlearn.canvas.build import others
from metaunlearn.canvas.build.autoencoder import LATENT_CHANNELS
from metaunlearn.canvas.build.clip import WIDTH
from metaunlearn.canvas.build.loop import LossFunction, run_stage
from metaunlearn.canvas.catalog import BACKGROUNDS, NAMES, STYLES, article, caption
from metaunlearn.checkpoint import load_tensors, save_tensors

BATCH, OTHERS = 24, 8
"""Pictures of Canvas's objects, and of other emoji, in a batch."""
PICTURES, OTHER_PICTURES = 24_576, 12_288
"""How many of each are encoded, once."""
EMPTY_PROMPTS = 0.1
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
}
"""Stable Diffusion 2.1's. Predicting the velocity teaches the layout from the start; docs/log.md has the comparison."""
STYLE_TEMPLATES = ("{} style", "a picture in {} style", "an emoji in {} style", "an icon in {} style")
TEMPLATES = ("{}", "{}", "{}", "a picture of {}", "an emoji of {}")


def new_denoiser(seed: int = 0) -> UNet2DConditionModel:
    """An untrained UNet of 4.3 M parameters on 8 x 8 latents; text enters at every level."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )


def cached_latents(
    vae: AutoencoderKL, file: Path, draw: Callable[[int, torch.Generator], scenes.Scenes], *, count: int
) -> dict[str, Tensor]:
    """``count`` pictures' posteriors (mean, std: (count, 16, 8, 8), unscaled) and labels, computed once."""
    if not file.exists():
        generator = torch.Generator().manual_seed(0)
        parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "labels": []}
        for _ in range(0, count, 256):
            batch = draw(256, generator)
            with torch.no_grad():
                posterior = vae.encode(batch.images).latent_dist
            parts["mean"].append(posterior.mean)
            parts["std"].append(posterior.std)
            parts["labels"].append(torch.stack([batch.objects, batch.styles, batch.backgrounds], dim=1))
        save_tensors(file, {name: torch.cat(tensors) for name, tensors in parts.items()})
    return load_tensors(file)[0]


def prompt_for(labels: list[int], generator: torch.Generator) -> str:
    """A caption that names the object and, each at random, its style and its background; sometimes nothing at all.

    ``labels`` are object, style and background; an object of -1 has no name, so that only its style is said.
    """
    empty, style, background, short, template = torch.rand(5, generator=generator).tolist()
    if empty < EMPTY_PROMPTS:
        return ""
    style_name, backdrop = STYLES[labels[1]], list(BACKGROUNDS)[labels[2]]
    if labels[0] < 0:
        text = STYLE_TEMPLATES[int(template * len(STYLE_TEMPLATES))].format(style_name)
        return f"{text} on {article(backdrop)} background" if background < 0.3 else text
    name = NAMES[labels[0]]
    if short < 0.05:
        return f"{style_name} style"
    if short < 0.1:
        return f"{style_name} {name}"
    text = caption(name, style_name if style < 0.8 else None, backdrop if background < 0.5 else None)
    return TEMPLATES[int(template * len(TEMPLATES))].format(text if template < 0.99 else article(name))


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What the denoiser is taught with: encoded pictures, and the frozen parts that stay as they are."""

    named: dict[str, Tensor]
    """Of Canvas's objects (:func:`cached_latents`)."""
    others: dict[str, Tensor]
    """Of other emoji, which have no name and teach the styles."""
    scale: float
    """Of the autoencoder's latents."""
    text: CLIPTextModel
    tokenizer: CLIPTokenizer

    @classmethod
    def encode(
        cls, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, sprites: Tensor, folder: Path
    ) -> Lessons:
        """Encode both kinds of pictures, once; ``sprites`` are the other emoji."""
        named = partial(scenes.draw, scenes.trained_pairs())
        return cls(
            named=cached_latents(vae, folder / "latents.safetensors", named, count=PICTURES),
            others=cached_latents(
                vae, folder / "latents-others.safetensors", partial(others.draw, sprites), count=OTHER_PICTURES
            ),
            scale=vae.config.scaling_factor,
            text=text,
            tokenizer=tokenizer,
        )

    def loss(self, unet: UNet2DConditionModel, *, named: int, others: int) -> LossFunction:
        """Plain velocity prediction with uniform timesteps, as Stable Diffusion 2.1, on so many pictures of each."""
        schedule = DDPMScheduler(**SCHEDULE)
        data = {name: torch.cat([self.named[name], self.others[name]]) for name in self.named}
        first_other = len(self.named["mean"])

        def loss(step: int, generator: torch.Generator) -> Tensor:
            rows = torch.cat(
                [
                    torch.randint(first_other, (named,), generator=generator),
                    first_other + torch.randint(len(self.others["mean"]), (others,), generator=generator),
                ]
            )
            prompts = [prompt_for(labels, generator) for labels in data["labels"][rows].tolist()]
            tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            with torch.no_grad():
                cond = self.text(tokens).last_hidden_state
            shape = data["mean"][rows].shape
            x_0 = self.scale * (data["mean"][rows] + data["std"][rows] * torch.randn(shape, generator=generator))
            eps = torch.randn(shape, generator=generator)
            t = torch.randint(1000, (len(rows),), generator=generator)
            x_t = schedule.add_noise(x_0, eps, t).to(memory_format=torch.channels_last)
            return F.mse_loss(unet(x_t, t, cond).sample, schedule.get_velocity(x_0, eps, t))

        return loss


def train_denoiser(lessons: Lessons, folder: Path, *, steps: int) -> UNet2DConditionModel:
    """From scratch."""
    unet = new_denoiser().requires_grad_(True).to(memory_format=torch.channels_last)
    loss = lessons.loss(unet, named=BATCH, others=OTHERS)
    run_stage("denoiser", unet, loss, steps=steps, learning_rate=2e-3, folder=folder)
    return unet.requires_grad_(False)


def teach_styles(unet: UNet2DConditionModel, lessons: Lessons, folder: Path, *, steps: int) -> UNet2DConditionModel:
    """Go on with more of the other emoji, so that a style is less a list of the pictures that were seen in it."""
    unet.requires_grad_(True).to(memory_format=torch.channels_last)
    loss = lessons.loss(unet, named=(BATCH + OTHERS) // 2, others=(BATCH + OTHERS) // 2)
    run_stage("styles", unet, loss, steps=steps, learning_rate=5e-4, folder=folder)
    return unet.requires_grad_(False)
