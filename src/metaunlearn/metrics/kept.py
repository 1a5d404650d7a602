"""What an evaluation keeps of a batch once its pictures are written and dropped: JSON rows, and features.

B pictures in a batch, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import load_tensors, save_tensors, write_json

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
    features: Tensor | None
    """(B, D), when a metric wants them."""


def write_kept(folder: Path, number: int, part: Kept) -> None:
    """Keep batch ``number``. The JSON comes last: where it lies, everything of the batch does."""
    if part.features is not None:
        save_tensors(folder / f"{number:05d}.safetensors", {"features": part.features})
    record = {"indices": part.indices, "size": list(part.size), "rows": dict(part.rows)}
    write_json(folder / f"{number:05d}.json", {**record, "features": part.features is not None})


def read_kept(folder: Path, number: int) -> Kept | None:
    """Batch ``number``, if it was finished."""
    file = folder / f"{number:05d}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    features = load_tensors(file.with_suffix(".safetensors"))[0]["features"] if record["features"] else None
    height, width = record["size"]
    return Kept(indices=record["indices"], size=(height, width), rows=record["rows"], features=features)


def join(parts: Sequence[Kept]) -> Kept:
    """All pictures of ``parts`` in the order of their indices."""
    indices = [index for part in parts for index in part.indices]
    order = sorted(range(len(indices)), key=indices.__getitem__)

    def ordered(key: str) -> Rows:
        rows = [row for part in parts for row in part.rows[key]]
        return [rows[at] for at in order]

    features = [part.features for part in parts if part.features is not None]
    return Kept(
        indices=[indices[at] for at in order],
        size=parts[0].size,
        rows={key: ordered(key) for key in parts[0].rows},
        features=torch.cat(features)[order] if features else None,
    )
