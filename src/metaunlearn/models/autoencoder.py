"""Where pictures enter and leave an autoencoder: few at a time, and grey where it knows one channel only.

Everything else sees pictures of three channels. Shapes: B pictures, c channels of the autoencoder, 1 (grey) or 3 (RGB).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

AT_ONCE = 512 * 512
"""Pixels that go through an autoencoder together: Stable Diffusion's then needs 0.75 GiB for what it works on."""
ENCODED = 16
"""Pictures that are encoded together, at most."""


def encoded_at_once(pixels: int) -> int:
    """How many pictures of so many pixels each are encoded together."""
    return max(1, min(ENCODED, AT_ONCE // pixels))


def decoded_at_once(pictures: int, pixels: int) -> int:
    """How many of a batch of ``pictures`` of so many pixels each are decoded together: all, or one."""
    return pictures if pictures * pixels <= AT_ONCE else 1


@contextmanager
def decoding(vae: Any, pictures: int, pixels: int) -> Iterator[None]:
    """While this is open, ``vae`` decodes batches of ``pictures`` as :func:`decoded_at_once` says."""
    sliced = decoded_at_once(pictures, pixels) < pictures and not vae.use_slicing
    if sliced:
        vae.enable_slicing()
    try:
        yield
    finally:
        if sliced:
            vae.disable_slicing()


def as_taken(vae: Any, images: Tensor) -> Tensor:
    """``images`` (B, 3, H, W) as ``vae`` takes them, (B, c, H, W): a grey pixel is the mean of its colours."""
    return images.mean(dim=1, keepdim=True) if vae.config.in_channels == 1 else images


def as_rgb(images: Tensor) -> Tensor:
    """What an autoencoder gave, (B, c, H, W), with three channels: (B, 3, H, W)."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
