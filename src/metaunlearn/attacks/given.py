"""What an attack hands over, checked: it may be another package's, and what is wrong should not look like a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.attacks.interface import EditKind, Training, TrainingKind
from metaunlearn.data.imagefolder import METADATA
from metaunlearn.errors import RunError, UserError

INDEX = {"pipeline": "model_index.json", "pictures": METADATA}
"""What a folder of each has at least."""


def checked_training(kind: TrainingKind, training: Any) -> Training:
    """``training``; UserError unless it trains leaves, by losses that depend on them, and says all that it changes."""
    who = f"{type(kind).__name__}.begin()"
    if not isinstance(training, Training):
        raise UserError(f"{who} must return a metaunlearn.attacks.interface.Training; got {type(training).__name__}.")
    wrong = [name for name, leaf in training.trained.items() if not (leaf.is_leaf and leaf.is_floating_point())]
    if wrong or not training.trained:
        raise UserError(
            f"{who}: trained must hold leaves in floating point, by name, at least one"
            + (f"; {wrong[0]} is none." if wrong else "; got none.")
        )
    if unsaid := sorted({*training.changed} - {"unet", *kind.copies}):
        raise UserError(
            f"{who} changes {', '.join(unsaid)}, which {type(kind).__name__}.copies does not name: it would change the "
            "pipeline of whoever called."
        )

    def loss(generator: torch.Generator) -> Tensor:
        value = training.loss(generator)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            is_now = f"has the shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise UserError(f"{who}: loss must give a scalar that depends on what is trained; it {is_now}.")
        return value

    return replace(training, loss=loss)


def checked_made(kind: EditKind, figures: Any, folder: Path) -> Mapping[str, Any]:
    """``figures`` of what was made in ``folder``; RunError unless they are JSON values and what it leaves is there."""
    who = f"{type(kind).__name__}.make()"
    try:
        json.dumps(figures, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunError(f"{who} must return figures of JSON values: {error}.") from None
    if not isinstance(figures, Mapping):
        raise RunError(f"{who} must return figures by name; got {figures!r}.")
    if not (folder / INDEX[kind.leaves]).is_file():
        raise RunError(f"{who} must leave {kind.leaves} in {folder}, and there is no {INDEX[kind.leaves]}.")
    return figures
