"""Duplicates in a set of pictures: identical ones, and near ones by a difference hash of 64 bits.

The hash (N. Krawetz, 2013) shrinks a picture to 9 x 8 grey values and asks of each whether its right neighbour is
brighter. It sees the coarse layout: noise, compression and a slight change of brightness leave it as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

BITS = 64


@dataclass(frozen=True)
class Duplicate:
    """A picture that repeats an earlier one."""

    index: int
    of: int
    distance: int
    """Bits in which their hashes differ; -1: the same pixels."""


def difference_hash(image: Image.Image) -> int:
    """The 64 bits of ``image``, row by row."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_duplicates(files: Sequence[Path], *, nearest: int) -> list[Duplicate]:
    """The pictures in ``files`` that repeat an earlier one that is kept: identical, or at most ``nearest`` bits apart.

    A negative ``nearest`` finds identical ones only.
    """
    seen: dict[str, int] = {}
    kept: list[int] = []
    hashes = np.zeros(len(files), dtype=np.uint64)
    found = []
    for index, file in enumerate(files):
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        if pixels in seen:
            found.append(Duplicate(index, seen[pixels], -1))
            continue
        seen[pixels] = index
        hashes[index] = difference_hash(image)
        if kept and nearest >= 0:
            apart = np.bitwise_count(hashes[kept] ^ hashes[index])
            closest = int(apart.argmin())
            if apart[closest] <= nearest:
                found.append(Duplicate(index, kept[closest], int(apart[closest])))
                seen[pixels] = kept[closest]
                continue
        kept.append(index)
    return found
