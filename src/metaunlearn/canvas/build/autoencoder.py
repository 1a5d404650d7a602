"""Stage 1: the autoencoder. A four-fold one first, which learns fast; grown to eight-fold; the decoder alone last."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from metaunlearn.canvas import scenes
from metaunlearn.canvas.build.loop import run_stage

SMALL_CHANNELS, SMALL_LATENT_CHANNELS = (16, 32, 64), 4
CHANNELS, LATENT_CHANNELS = (16, 32, 64, 64), 16
CROP = 32
KL_WEIGHT = 1e-4


def new_autoencoder(channels: tuple[int, ...], latent_channels: int, seed: int = 0) -> AutoencoderKL:
    """An untrained autoencoder; every level but the first halves the picture."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=scenes.IMAGE_SIZE,
        )


def grown(small: AutoencoderKL) -> AutoencoderKL:
    """The four-fold autoencoder with one more level inside: 16 x 16 x 4 latents become 8 x 8 x 16.

    The new level's residual blocks start as the identity; what leads in and out of the latents is new.
    """
    vae = new_autoencoder(CHANNELS, LATENT_CHANNELS, seed=1)
    inner = len(SMALL_CHANNELS)
    weights = vae.state_dict()
    for name, value in small.state_dict().items():
        if name.startswith("decoder.up_blocks."):
            _, _, level, rest = name.split(".", 3)
            name = f"decoder.up_blocks.{int(level) + 1}.{rest}"
        if name in weights and weights[name].shape == value.shape:
            weights[name] = value
    for name, value in weights.items():
        if name.startswith((f"encoder.down_blocks.{inner}.", "decoder.up_blocks.0.")) and ".conv2." in name:
            weights[name] = torch.zeros_like(value)
    vae.load_state_dict(weights)
    return vae


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels and of their horizontal and vertical differences, which keeps outlines sharp."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges


def _crops(images: Tensor, generator: torch.Generator) -> Tensor:
    top, left = torch.randint(scenes.IMAGE_SIZE - CROP + 1, (2, len(images)), generator=generator).tolist()
    return torch.stack([x[:, t : t + CROP, s : s + CROP] for x, t, s in zip(images, top, left, strict=True)])


def _train(name: str, vae: AutoencoderKL, folder: Path, *, crop_steps: int, full_steps: int) -> AutoencoderKL:
    """Encoder and decoder together: small crops first (four times cheaper a step), whole pictures last."""
    vae.to(memory_format=torch.channels_last)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        whole = step >= crop_steps
        images = scenes.draw(scenes.trained_pairs(), 16 if whole else 32, generator).images
        images = (images if whole else _crops(images, generator)).to(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        output = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return reconstruction_loss(output, images) + KL_WEIGHT * kl

    run_stage(name, vae, loss, steps=crop_steps + full_steps, learning_rate=2e-3, folder=folder, anneal=False)
    return vae


def train_autoencoder(folder: Path, *, crop_steps: int, full_steps: int) -> AutoencoderKL:
    """The four-fold, then the eight-fold autoencoder, whose latents are white."""
    small = new_autoencoder(SMALL_CHANNELS, SMALL_LATENT_CHANNELS)
    small = _train("autoencoder-small", small, folder, crop_steps=crop_steps, full_steps=full_steps)
    vae = _train("autoencoder", grown(small), folder, crop_steps=crop_steps, full_steps=full_steps)
    whiten(vae, scenes.draw(scenes.trained_pairs(), 512, torch.Generator().manual_seed(0)).images)
    return vae


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: Tensor, floor: float = 0.05) -> None:
    """Give the latents of ``images`` mean 0 and (nearly) the identity as their channels' covariance.

    Without it three of sixteen directions, the background's colour, hold three quarters of the variance, and the
    denoiser learns backgrounds first. Directions of much less variance than ``floor`` stay small. What is decoded does
    not change: the encoder's last 1 x 1 convolution yields W (z - mu), the decoder's first one undoes it. The
    posterior's standard deviation, small beside 1, becomes a constant of each channel.
    """
    posterior = vae.encode(images).latent_dist
    mu = posterior.mean.mean(dim=(0, 2, 3))
    centred = (posterior.mean - mu[:, None, None]).transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh((centred @ centred.T / centred.shape[1]).double())
    scale = (values / (values + floor)).mean().sqrt()
    whitening = (vectors * (values + floor).rsqrt() @ vectors.T / scale).float()
    variance = whitening.square() @ posterior.var.mean(dim=(0, 2, 3))

    count, out, back = len(mu), vae.quant_conv, vae.post_quant_conv
    out.weight[:count] = torch.einsum("ij,jkhw->ikhw", whitening, out.weight[:count])
    out.bias[:count] = whitening @ (out.bias[:count] - mu)
    out.weight[count:] = 0
    out.bias[count:] = variance.log()
    back.bias += back.weight[:, :, 0, 0] @ mu
    back.weight.copy_(torch.einsum("ijhw,jk->ikhw", back.weight, torch.linalg.inv(whitening)))
    vae.register_to_config(scaling_factor=1.0)


def train_decoder(vae: AutoencoderKL, folder: Path, *, steps: int) -> AutoencoderKL:
    """The decoder alone, on latents of the frozen encoder: the denoiser can be trained meanwhile."""
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        images = scenes.draw(scenes.trained_pairs(), 16, generator).images.to(memory_format=torch.channels_last)
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
            # The denoiser's latents are never exact: a little extra noise teaches the decoder to forgive that.
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean + (posterior.std + 0.05 / vae.config.scaling_factor) * noise
        return reconstruction_loss(vae.decode(latents).sample, images)

    run_stage("decoder", vae, loss, steps=steps, learning_rate=1.5e-3, folder=folder)
    return vae.requires_grad_(False)
