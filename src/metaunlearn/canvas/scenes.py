"""Canvas's pictures: a sprite on a coloured background, placed, scaled and tilted at random.

Shapes: N sprites, B pictures. Sprites are premultiplied RGBA in [0, 1]; pictures are RGB in [-1, 1], 64 x 64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.canvas.catalog import BACKGROUNDS, NAMES, STYLES, UNSEEN_PAIRS

IMAGE_SIZE = 64

Render = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""From sprites (B, 4, 64, 64) and background indices (B,) to pictures (B, 3, 64, 64) in [-1, 1]; see :func:`place`."""


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures with what is in them, as indices into ``NAMES``, ``STYLES`` and ``BACKGROUNDS``."""

    images: Tensor
    """(B, 3, 64, 64) in [-1, 1]."""
    objects: Tensor
    """(B,) int64."""
    styles: Tensor
    """(B,) int64."""
    backgrounds: Tensor
    """(B,) int64."""


@functools.cache
def sprites() -> Tensor:
    """All sprites, (objects, styles, 4, 64, 64), premultiplied RGBA in [0, 1]."""
    art = resources.files("metaunlearn.canvas") / "art"
    rows = []
    for name in NAMES:
        row = []
        for style in STYLES:
            with (art / style / f"{name}.png").open("rb") as handle:
                row.append(to_sprite(Image.open(handle)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def to_sprite(picture: Image.Image) -> Tensor:
    """A picture with transparency as a sprite, (4, H, W), premultiplied RGBA in [0, 1]."""
    rgba = torch.from_numpy(np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255).permute(2, 0, 1)
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])


@functools.cache
def trained_pairs() -> Tensor:
    """(object, style) index pairs that the generator is trained on, (P, 2)."""
    pairs = [
        (o, s) for o, name in enumerate(NAMES) for s, style in enumerate(STYLES) if (name, style) not in UNSEEN_PAIRS
    ]
    return torch.tensor(pairs)


@functools.cache
def all_pairs() -> Tensor:
    """Every (object, style) index pair, (N, 2)."""
    return torch.cartesian_prod(torch.arange(len(NAMES)), torch.arange(len(STYLES)))


def pairs_of(names: Sequence[str], styles: Sequence[str] = STYLES) -> Tensor:
    """Index pairs of the given objects in the given styles, (len(names) * len(styles), 2)."""
    return torch.tensor([(NAMES.index(name), STYLES.index(style)) for name in names for style in styles])


def place(layers: Tensor, backgrounds: Tensor, generator: torch.Generator) -> Tensor:
    """Sprites (B, 4, 64, 64) at a random place, size and tilt on their backgrounds: (B, 3, 64, 64) in [-1, 1]."""
    count = len(layers)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    size = uniform(0.88, 0.94)
    angle = uniform(-math.pi / 120, math.pi / 120)
    room = 0.3 * (1 - size)
    shift_x, shift_y = uniform(-1, 1) * room, uniform(-1, 1) * room
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # affine_grid maps picture coordinates to sprite coordinates: undo the shift, then the tilt and the scale.
    affine = torch.stack(
        [
            torch.stack([cos, sin, -(cos * shift_x + sin * shift_y)], dim=1),
            torch.stack([-sin, cos, sin * shift_x - cos * shift_y], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [count, 4, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    layers = F.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    colours = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32)[backgrounds] / 255
    colours = (colours + 0.03 * torch.randn(count, 3, generator=generator)).clamp(0, 1)
    images = layers[:, :3] + (1 - layers[:, 3:]) * colours[:, :, None, None]
    return images.clamp(0, 1) * 2 - 1


def draw(pairs: Tensor, count: int, generator: torch.Generator, render: Render = place) -> Scenes:
    """``count`` random pictures of sprites drawn uniformly from ``pairs``, on random backgrounds."""
    rows = pairs[torch.randint(len(pairs), (count,), generator=generator)]
    return compose(rows[:, 0], rows[:, 1], random_backgrounds(count, generator), generator, render)


def random_backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """``count`` indices into ``BACKGROUNDS``, (count,)."""
    return torch.randint(len(BACKGROUNDS), (count,), generator=generator)


def compose(
    objects: Tensor, styles: Tensor, backgrounds: Tensor, generator: torch.Generator, render: Render = place
) -> Scenes:
    """Pictures of exactly these (object, style, background) triples, each at a random place, size and tilt."""
    images = render(sprites()[objects, styles], backgrounds, generator)
    return Scenes(images=images, objects=objects, styles=styles, backgrounds=backgrounds)
