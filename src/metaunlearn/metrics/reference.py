"""The real images with which distances compare the generated ones.

R reference images, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import (
    Entry,
    fingerprint,
    list_entries,
    read_in_batches,
    read_whole,
    require_modes,
)
from metaunlearn.files import path_of
from metaunlearn.metrics.inception import Inception
from metaunlearn.metrics.judge import BATCH, Judge


@dataclass(kw_only=True)
class Reference:
    """A folder of them; decoded only to be embedded, a batch at a time."""

    folder: Path
    size: int
    """Pixels a side to which their centre squares are resized for a judge."""
    entries: Sequence[Entry]
    _features: dict[tuple[str, str], Tensor] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str, *, size: int) -> Reference:
        """UserError when ``folder`` is no set of images, RGB or grey. They may have any sizes, as real ones do."""
        entries = list_entries(folder, default_text="")
        require_modes(entries, "the real images (reference=, --reference)", mixed=True)
        return cls(folder=path_of(folder), size=size, entries=entries)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the set."""
        return fingerprint(self.folder)

    def features(self, source: Judge | Inception) -> Tensor:
        """Features of every image by ``source``, (R, D); UserError names an image that cannot be decoded."""
        key = (source.fingerprint, source.way if isinstance(source, Inception) else "")
        if key not in self._features:
            self._features[key] = self._embedded(source)
        return self._features[key]

    def resize(self, source: Judge | Inception) -> str:
        """How the images are scaled for ``source``, for the protocol."""
        if isinstance(source, Inception):
            return f"{source.way}: {source.scaling.described}; whole reference images"
        return f"centre square, bicubic with antialiasing to {self.size} pixels, then as the judge does"

    def _embedded(self, source: Judge | Inception) -> Tensor:
        if isinstance(source, Inception):
            # Whole, as the packages take them whose figures these ways of scaling give.
            return source.embed_images(read_whole(entry.file).float() / 255 for entry in self.entries)
        parts = read_in_batches(self.entries, size=self.size, batch_size=BATCH)
        return torch.cat([source.embed_images(((images + 1) / 2).clamp(0, 1)) for images in parts])
