"""What an evaluation keeps of a batch once its pictures are written and dropped: JSON rows, and features.

B pictures in a batch, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from metaunlearn.checkpoint import load_kept, save_tensors
from metaunlearn.files import write_json

Rows = list[Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The measurements of some pictures."""

    indices: list[int]
    """Which pictures of the set they are."""
    size: tuple[int, int]
    """Height and width in pixels."""
    rows: Mapping[str, Rows]
    """By metric, one a picture; None where the metric does not concern it."""
    features: Mapping[str, Tensor]
    """Those that some metric wants, each (B, D), by name."""


def write_kept(folder: Path, number: int, part: Kept) -> None:
    """Keep batch ``number``. The JSON comes last: where it lies, everything of the batch does."""
    if part.features:
        save_tensors(folder / f"{number:05d}.safetensors", part.features)
    record = {"indices": part.indices, "size": list(part.size), "rows": dict(part.rows)}
    write_json(folder / f"{number:05d}.json", {**record, "features": sorted(part.features)})


def read_kept(folder: Path, number: int) -> Kept | None:
    """Batch ``number``, if it was finished, and nothing of it is gone."""
    file, tensors = folder / f"{number:05d}.json", folder / f"{number:05d}.safetensors"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if record["features"] and not tensors.exists():
        return None
    features = load_kept(tensors)[0] if record["features"] else {}
    height, width = record["size"]
    return Kept(indices=record["indices"], size=(height, width), rows=record["rows"], features=features)


class Gathering:
    """The measurements of a whole set of N pictures, as its batches come in.

    Room for all features is taken at once: small tensors that are kept, each allocated between two large ones that are
    not, would leave the memory of every batch in pieces too small for the next (0.6 MB a picture of 256 pixels).
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.size = (0, 0)
        self.rows: dict[str, Rows] = {}
        self.features: dict[str, Tensor] = {}

    def part(self, indices: list[int]) -> Kept:
        """What there is of the pictures ``indices``."""
        return Kept(
            indices=indices,
            size=self.size,
            rows={key: [rows[index] for index in indices] for key, rows in self.rows.items()},
            features={name: features[indices] for name, features in self.features.items()},
        )

    def add(self, part: Kept) -> None:
        """Put the pictures of ``part`` at their places."""
        self.size = part.size
        for key, rows in part.rows.items():
            whole = self.rows.setdefault(key, [None] * self.count)
            for index, row in zip(part.indices, rows, strict=True):
                whole[index] = row
        for name, features in part.features.items():
            if name not in self.features:
                self.features[name] = features.new_empty(self.count, features.shape[1])
            self.features[name][part.indices] = features
