"""What an unlearning method is: settings of its own, and one of two ways to work.

An *optimised* method (ESD, SDD) is a forget loss inside Algorithm 1, which starts at theta*. A *closed-form* one (UCE,
RECE) computes theta^UN at once; with the meta objective Algorithm 1 then starts at theta^UN and has no forget loss.

A method is a subclass of :class:`~metaunlearn.settings.Settings`: its fields are keys of a recipe and of ``--set``. It
needs no other base class: :class:`OptimisedMethod` and :class:`ClosedFormMethod` say which functions it must have.

Shapes: B pictures, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import ConceptPrompts
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Progress


@dataclass(frozen=True, kw_only=True)
class ErasureTask:
    """What a method is given."""

    model: TextToImageModel
    """MODEL with its pretrained parameters theta*."""
    prompts: ConceptPrompts
    """What to forget and what to keep."""
    settings: EraseSettings
    """Those that every method shares."""
    seed: int
    """Every random draw follows from it (:func:`~metaunlearn.checkpoint.step_generator`)."""
    cache: Path | None = None
    """A folder for what is expensive and needed again by a resumed run; it goes when the run is complete."""
    shared: Path | None = None
    """A folder for what other runs on the same model and prompts need, too, each file named by what it depends on."""
    progress: Progress | None = None
    processes: Processes = ALONE
    """Those that share the run: each has this task and does the same, unless a function shares its work out."""


class ForgetBatch(NamedTuple):
    """L_forget on one batch: || f_theta(x_t, t, cond) - target ||^2, the mean over pictures and latent values."""

    x_t: Tensor
    """(B, C, h, w)."""
    t: Tensor
    """(B,) int64."""
    cond: Conditioning
    """B rows."""
    target: Tensor
    """(B, C, h, w), a constant: no gradient flows into it, also where it was computed from theta."""


class ForgetLoss(Protocol):
    """An optimised method at work in one run."""

    def batch(self, theta: Params, step: int, size: int, generator: torch.Generator) -> ForgetBatch:
        """The batch of outer step ``step`` (from 0), drawn with ``generator`` only."""
        ...


@runtime_checkable
class MovingForgetLoss(ForgetLoss, Protocol):
    """One that moves along with theta, as a method with a teacher does."""

    def after_step(self, theta: Params, step: int) -> None:
        """``theta`` is what ``step`` outer steps have led to."""
        ...

    def result(self, theta: Params) -> Params:
        """The parameters to save when Algorithm 1 ends at ``theta``."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What changed since the run began; a resumed run gets it back, and must then go on bit for bit."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        ...


@runtime_checkable
class OptimisedMethod(Protocol):
    """A forget loss inside Algorithm 1."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """phi: names of the parameters that Algorithm 1 trains; UserError when the model has none of them."""
        ...

    def begin(self, task: ErasureTask) -> ForgetLoss:
        """Get ready for one run."""
        ...


class Edit(NamedTuple):
    """A closed-form method's result."""

    theta: Params
    """theta^UN, all parameters; those that were not edited are theta*'s own."""
    report: dict[str, Any]
    """What log.jsonl and run.json say of it: JSON values."""


@runtime_checkable
class ClosedFormMethod(Protocol):
    """theta^UN at once."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """phi of the second stage, with the meta objective; UserError when the model has none of them."""
        ...

    def edit(self, task: ErasureTask) -> Edit:
        """theta^UN from theta*."""
        ...


@runtime_checkable
class CheckingMethod(Protocol):
    """A method of either way that cannot do everything: it says so before any work."""

    def check(self, model: TextToImageModel, prompts: ConceptPrompts) -> None:
        """UserError when the method cannot erase these prompts' concepts from this model."""
        ...


NO_FORGET_LOSS = (
    "post_attack_loss = 'forget' (--set post_attack_loss=...) takes the method's own forget loss after the simulated "
    "finetuning, and the second stage of a closed-form method, such as UCE or RECE, has none. Choose an optimised "
    "method (method=..., --method esd-u-1), or post_attack_loss=denoising."
)

Method = OptimisedMethod | ClosedFormMethod
