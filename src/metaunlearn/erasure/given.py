"""What a method hands over, checked: it may be another package's, and what is wrong should not reach the weights.

Names and shapes of a closed-form edit, the names that are trained, the rows of each forget batch. A method of another
package is also held to leaving alone what it does not train.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.erasure.interface import Edit, ForgetBatch, ForgetLoss
from metaunlearn.errors import UserError, some_of
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import digest
from metaunlearn.plugins import is_ours
from metaunlearn.shards import are_pieces

SHOWN = 3
"""Names in a message."""


def trained_by(method: Any, model: TextToImageModel) -> frozenset[str]:
    """What ``method`` trains; UserError unless these are names of ``model``'s parameters."""
    names = method.trained(model)
    who = f"{type(method).__name__}.trained()"
    if isinstance(names, str) or not isinstance(names, Collection) or not names:
        raise UserError(f"{who} must give the names of parameters, at least one, as a set; got {names!r}.")
    if unknown := sorted(map(str, set(names) - set(model.parameter_names))):
        raise UserError(f"{who} names what the model does not have: {some_of(unknown, SHOWN)}.")
    return frozenset(names)


def checked_edit(method: Any, edit: Any, model: TextToImageModel) -> Edit:
    """``edit``; UserError unless it has all parameters of ``model``, in their shapes, and a report for JSON."""
    who = f"{type(method).__name__}.edit()"
    if not isinstance(edit, Edit):
        raise UserError(f"{who} must return a metaunlearn.erasure.interface.Edit; got {type(edit).__name__}.")
    shapes = {name: p.shape for name, p in model.unet.named_parameters()}
    if apart := sorted(shapes.keys() ^ edit.theta.keys()):
        raise UserError(
            f"{who} must return all {len(shapes)} parameters of the model and no other; these are in one of them only: "
            f"{some_of(apart, SHOWN)}."
        )
    for name, shape in shapes.items():
        if edit.theta[name].shape != shape:
            raise UserError(f"{who} returned {name} as {tuple(edit.theta[name].shape)}; it is {tuple(shape)}.")
    try:
        json.dumps(edit.report)
    except TypeError as error:
        raise UserError(f"the report of {who} must be of JSON values: {error}.") from None
    return edit


def checked_loss(name: str, forget: Any) -> ForgetLoss:
    """``forget``, what the method ``name`` begins with; UserError unless it can be asked for batches."""
    if forget is None:
        raise UserError(
            f"the method {name!r} begins with no forget loss, so it would erase nothing: begin() must return one."
        )
    if not callable(getattr(forget, "batch", None)):
        raise UserError(
            f"the method {name!r} begins with {type(forget).__name__}, which has no batch(): begin() must return a "
            "metaunlearn.erasure.interface.ForgetLoss."
        )
    return forget


def checked_batch(forget: Any, batch: Any, model: TextToImageModel, size: int, *, first: bool) -> ForgetBatch:
    """``batch``; UserError unless it has ``size`` rows of everything, and timesteps that the schedule has.

    The timesteps' range is looked at when it is the ``first`` alone: a device would have to be waited for.
    """
    who = f"{type(forget).__name__}.batch()"
    if not isinstance(batch, ForgetBatch) or not isinstance(batch.cond, Conditioning):
        raise UserError(
            f"{who} must return a metaunlearn.erasure.interface.ForgetBatch, with a Conditioning; "
            f"got {type(batch).__name__}."
        )
    shape = (size, *model.latent_shape)
    rows: tuple[tuple[str, Tensor, tuple[int, ...]], ...] = (
        ("x_t", batch.x_t, shape), ("target", batch.target, shape), ("t", batch.t, (size,)),
        ("cond.tokens", batch.cond.tokens, (size, *batch.cond.tokens.shape[1:])),
    )  # fmt: skip
    for name, tensor, expected in rows:
        if tensor.shape != expected:
            raise UserError(f"{who}: {name} must have the shape {expected}; got {tuple(tensor.shape)}.")
    if batch.t.dtype != torch.int64:
        raise UserError(f"{who}: t must be int64; got {str(batch.t.dtype).removeprefix('torch.')}.")
    last = model.schedule.timesteps - 1
    if first and not 0 <= int(batch.t.min()) <= int(batch.t.max()) <= last:
        raise UserError(f"{who}: t must lie between 0 and {last}; got {int(batch.t.min())} to {int(batch.t.max())}.")
    return batch


class Untouched:
    """What a method of another package does not train, as it was when the run began."""

    def __init__(self, method: Any, model: TextToImageModel, trained: Collection[str]) -> None:
        self._who, self._trained = type(method).__name__, trained
        self._own = is_ours(method)
        self._before = "" if self._own else self._digest(dict(model.unet.named_parameters()))

    def check(self, theta: dict[str, Tensor]) -> None:
        """UserError when it has changed in ``theta``."""
        if not self._own and not are_pieces(theta.values()) and self._digest(theta) != self._before:
            raise UserError(
                f"{self._who} has changed parameters that its trained() does not name: copy what batch() and begin() "
                "are given before you change it, and leave MODEL as it is."
            )

    def _digest(self, theta: dict[str, Tensor]) -> str:
        return digest({name: p for name, p in theta.items() if name not in self._trained})
