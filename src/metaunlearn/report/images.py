"""Sample pictures as data URIs, small enough together for one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from metaunlearn.errors import UserError

BUDGET = 1_500_000
"""Bytes that all pictures of a page may take together, before base64 (which adds a third)."""
GRID_BUDGET = 9_000_000
"""The same for a grid's page, which may have 15 MB."""

PIXEL_ART = 128
"""Pictures up to this side are shown enlarged with crisp pixels."""


@dataclass(frozen=True, kw_only=True)
class _Level:
    """How hard pictures are packed."""

    side: int
    """Longest side in pixels; larger pictures are shrunk to it."""
    quality: int | None
    """WebP quality; None is lossless."""


_LEVELS = (
    _Level(side=128, quality=None),
    _Level(side=384, quality=85),
    _Level(side=256, quality=75),
    _Level(side=160, quality=60),
    _Level(side=96, quality=40),
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that a page can hold."""

    uri: str
    width: int
    height: int

    @property
    def crisp(self) -> bool:
        """Whether it is so small that its pixels should stay square when enlarged."""
        return max(self.width, self.height) <= PIXEL_ART


def inline(paths: Sequence[Path], budget: int = BUDGET) -> list[Picture]:
    """Each file as a WebP data URI: lossless if all are small and fit ``budget`` bytes, else shrunk until they do."""
    images = [_open(path) for path in paths]
    small = all(max(image.size) <= PIXEL_ART for image in images)
    packed: list[tuple[bytes, tuple[int, int]]] = []
    for level in _LEVELS if small else _LEVELS[1:]:
        packed = [_pack(image, level) for image in images]
        if sum(len(data) for data, _ in packed) <= budget:
            break
    return [
        Picture(uri=f"data:image/webp;base64,{base64.b64encode(data).decode()}", width=width, height=height)
        for data, (width, height) in packed
    ]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); write the samples again.") from error


def _pack(image: Image.Image, level: _Level) -> tuple[bytes, tuple[int, int]]:
    shrunk = image.copy()
    shrunk.thumbnail((level.side, level.side), Image.Resampling.LANCZOS)  # Leaves smaller pictures alone.
    buffer = io.BytesIO()
    if level.quality is None:
        shrunk.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    else:
        shrunk.save(buffer, "WEBP", quality=level.quality, method=4)
    return buffer.getvalue(), shrunk.size
