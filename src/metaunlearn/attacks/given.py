"""What an attack hands over, checked: it may be another package's, and what is wrong should not look like a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.attacks.interface import EditKind, Training, TrainingKind
from metaunlearn.data.imagefolder import METADATA
from metaunlearn.errors import RunError, UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import digest
from metaunlearn.plugins import is_ours

INDEX = {"pipeline": "model_index.json", "pictures": METADATA}
"""What a folder of each has at least."""
OF_XL = ("text_encoder_2", "tokenizer_2")
"""Components of XL's pipelines."""


def checked_training(kind: TrainingKind, training: Any, model: TextToImageModel) -> Training:
    """``training``; UserError unless it trains leaves, by losses that depend on them, and says all that it changes."""
    who = f"{type(kind).__name__}.begin()"
    if not isinstance(training, Training):
        raise UserError(f"{who} must return a metaunlearn.attacks.interface.Training; got {type(training).__name__}.")
    trained: Any = training.trained
    leaves = trained.items() if isinstance(trained, Mapping) else ()
    wrong = [name for name, leaf in leaves if not (leaf.is_leaf and leaf.is_floating_point())]
    if wrong or not leaves:
        raise UserError(
            f"{who}: trained must hold leaves in floating point, by name, at least one"
            + (f"; {wrong[0]} is none." if wrong else "; got none.")
        )
    if unsaid := sorted({*training.changed} - {"unet", *kind.copies}):
        raise UserError(
            f"{who} changes {', '.join(unsaid)}, which {type(kind).__name__}.copies does not name: it would change the "
            "pipeline of whoever called."
        )
    check_components(who, training.changed, model)

    def loss(generator: torch.Generator) -> Tensor:
        value = training.loss(generator)
        if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
            raise UserError(f"{who}: loss must give a scalar that depends on what is trained; got {_in_words(value)}.")
        return value

    return replace(training, loss=loss)


def checked_made(kind: EditKind, figures: Any, folder: Path) -> Mapping[str, Any]:
    """``figures`` of what was made in ``folder``; RunError unless they are JSON values and what it leaves is there."""
    who, taken = f"{type(kind).__name__}.make()", {"step"}
    try:
        json.dumps(figures, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunError(f"{who} must return figures of JSON values: {error}.") from None
    if not isinstance(figures, Mapping) or taken & figures.keys():
        raise RunError(f"{who} must return figures by name, and none called {' or '.join(taken)}; got {figures!r}.")
    if not (folder / INDEX[kind.leaves]).is_file():
        raise RunError(f"{who} must leave {kind.leaves} in {folder}, and there is no {INDEX[kind.leaves]}.")
    return figures


def check_components(who: str, changed: Sequence[str], model: TextToImageModel) -> None:
    """UserError when no component is called as what is to be ``changed``; what XL alone has may be named for all."""
    if unknown := sorted({*changed} - {*model.pipeline.components, *OF_XL}):
        raise UserError(
            f"{who} changes {', '.join(unknown)}, which the pipeline does not have; it has "
            f"{', '.join(model.pipeline.components)}."
        )


class Watched:
    """The weights of a pipeline that an attack of another package is at work on; of our own nothing is watched."""

    def __init__(self, kind: TrainingKind | EditKind, model: TextToImageModel) -> None:
        self._who, self._model = type(kind).__name__, model
        self._own = is_ours(kind)
        self._before = "" if self._own else self._digest()

    def check_unmoved(self) -> None:
        """RunError when they are others now: the next strength would begin there."""
        if not self._own and self._digest() != self._before:
            raise RunError(
                f"{self._who}.make() has changed the model that it was given: change copies of its tensors, and put "
                "its own back after saving (metaunlearn.attacks.interface.save_with)."
            )

    def check_moved(self) -> None:
        """RunError when they are the same still: what was trained would be saved nowhere."""
        if not self._own and self._digest() == self._before:
            raise RunError(
                f"{self._who} has trained, and its write() puts nothing into the pipeline that is saved: every "
                "checkpoint would be the model before the attack."
            )

    def _digest(self) -> str:
        parts = self._model.pipeline.components.items()
        return digest(
            {
                f"{part}.{name}": p
                for part, module in parts
                if isinstance(module, torch.nn.Module)
                for name, p in module.named_parameters()
            }
        )


def _in_words(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"the shape {tuple(value.shape)}" if value.ndim else "one without a gradient"
