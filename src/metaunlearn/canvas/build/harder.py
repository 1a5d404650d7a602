"""Pictures that are harder to see than the artists' own: recoloured, bent, mirrored, soft and noisy.

What a generator draws is never quite what an artist drew: a rocket with a blue body, a strawberry whose outline
wobbles. A judge that knows only the artists' pictures takes them for something else.

Sprites are premultiplied RGBA in [0, 1], pictures RGB in [-1, 1]; B of them, 64 x 64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.canvas import scenes

RECOLOURED = 0.5
"""Share of the sprites that get other colours."""
LUMA = (0.299, 0.587, 0.114)


def place_harder(layers: Tensor, backgrounds: Tensor, generator: torch.Generator) -> Tensor:
    """As :func:`scenes.place`, recoloured before and bent afterwards."""
    return bend(scenes.place(recolour(layers, generator), backgrounds, generator), generator)


def recolour(layers: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the hue of some sprites (B, 4, 64, 64) by any angle and scale their saturation by 0.5 to 1.3."""
    count = len(layers)
    chosen = torch.rand(count, generator=generator) < RECOLOURED
    angle = 2 * math.pi * torch.rand(count, generator=generator) * chosen
    saturation = torch.where(chosen, 0.5 + 0.8 * torch.rand(count, generator=generator), 1.0)
    colours = torch.einsum("bij,bjhw->bihw", hue_matrices(angle, saturation), layers[:, :3])
    alpha = layers[:, 3:]
    return torch.cat([colours.clamp(min=torch.zeros(()), max=alpha), alpha], dim=1)


def hue_matrices(angle: Tensor, saturation: Tensor) -> Tensor:
    """Linear maps of RGB, (B, 3, 3), that turn the hue by ``angle`` (radians) and keep greys as they are."""
    third, root = 1 / 3, math.sqrt(1 / 3)
    cos, sin = torch.cos(angle), torch.sin(angle)
    same = cos + third * (1 - cos)
    left, right = third * (1 - cos) - root * sin, third * (1 - cos) + root * sin
    rows = [same, left, right, right, same, left, left, right, same]
    turn = torch.stack(rows, dim=1).view(-1, 3, 3)
    grey = torch.tensor(LUMA).expand(3, 3)
    scale = saturation[:, None, None]
    return (scale * torch.eye(3) + (1 - scale) * grey) @ turn


def bend(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink, tilt, mirror and wobble pictures (B, 3, 64, 64) by smooth random displacements."""
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    zoom, tilt = uniform(0.95, 1.3), uniform(-0.2, 0.2)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.3, -1.0, 1.0)
    shift_x, shift_y = uniform(-0.08, 0.08), uniform(-0.08, 0.08)
    cos, sin = zoom * torch.cos(tilt), zoom * torch.sin(tilt)
    affine = torch.stack(
        [torch.stack([mirror * cos, -sin, shift_x], dim=1), torch.stack([mirror * sin, cos, shift_y], dim=1)], dim=1
    )
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    knots = uniform(0, 0.09)[:, None, None, None] * torch.randn(count, 2, 6, 6, generator=generator)
    wobble = F.interpolate(knots, size=(height, width), mode="bicubic", align_corners=False)
    return F.grid_sample(images, grid + wobble.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the pictures and add a little noise: generated pictures are softer than real ones."""
    small = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    soft = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    amount = torch.rand(len(images), 1, 1, 1, generator=generator).mul(2).sub(1).clamp(min=0)
    return torch.lerp(images, soft, amount) + 0.04 * torch.randn(images.shape, generator=generator)
