"""What an unlearning method is: settings of its own, and one of three ways to work.

An *optimised* method (ESD, SDD) is a forget loss inside Algorithm 1, which starts at theta*. A *closed-form* one (UCE,
RECE) computes theta^UN at once; with the meta objective Algorithm 1 then starts at theta^UN and has no forget loss. A
*defended* one (ResAlign, IMMA) has a defence of its own: the outer loop is the same, and each step's gradient is that
of the defence and of lambda L_retain, with neither a forget loss nor the meta objective.

A method is a subclass of :class:`~metaunlearn.settings.Settings`: its fields are keys of a recipe and of ``--set``. It
needs no other base class: :class:`OptimisedMethod`, :class:`ClosedFormMethod` and :class:`DefendedMethod` say which
functions it must have.

Shapes: B pictures, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings, Of, settings_of
from metaunlearn.data.concepts import ConceptPrompts
from metaunlearn.data.latents import ErasureData
from metaunlearn.diffusion import Batch
from metaunlearn.errors import UserError
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
class Moving(Protocol):
    """A forget loss or a defence that moves along with theta, as a method with a teacher does."""

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


def moving_part(part: object) -> Moving | None:
    """``part``, a forget loss or a defence, if it moves; UserError when it has some of what moving takes, not all."""
    if isinstance(part, Moving):
        return part
    names = [name for name in vars(Moving) if not name.startswith("_")]
    missing = [name for name in names if not callable(getattr(part, name, None))]
    if len(missing) < len(names):
        there = [name for name in names if name not in missing]
        raise UserError(
            f"{type(part).__name__} has {', '.join(there)}, and to move along with theta it needs "
            f"{', '.join(missing)}, too (metaunlearn.erasure.interface.Moving)."
        )
    return None


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
    """A method that cannot erase everything from every model, and says so before any work."""

    def check(self, model: TextToImageModel, prompts: ConceptPrompts) -> None:
        """UserError when the method cannot erase these prompts' concepts from this model."""
        ...


NO_FORGET_LOSS = (
    "post_attack_loss = 'forget' (--set post_attack_loss=...) takes the method's own forget loss after the simulated "
    "finetuning, and the second stage of a closed-form method, such as UCE or RECE, has none. Choose an optimised "
    "method (method=..., --method esd-u-1), or post_attack_loss=denoising."
)
NO_SHARPNESS = (
    "sharpness_radius (--set sharpness_radius=...) is about the method's own forget loss, and the second stage of a "
    "closed-form method, such as UCE or RECE, has none. Choose an optimised method (method=..., --method esd-u-1), "
    "sharpness_radius=0, or lipschitz_weight, which every method has."
)


class DefenceGradient(NamedTuple):
    """What a defence adds to an outer step."""

    gradient: Params
    """Over the names that are trained, at least: the mean over all processes, detached."""
    record: dict[str, Any]
    """What log.jsonl says of it: numbers or lists of them where the key begins with ``loss_``, else JSON values."""


class Defence(Protocol):
    """A defended method at work in one run. One that is :class:`Moving`, too, moves in ``after_step`` alone."""

    def gradient(self, theta: Params, step: int, inner: Sequence[Batch], outer: Sequence[Batch]) -> DefenceGradient:
        """Of outer step ``step`` (from 0): the gradient of what stands in the place of L_forget in Eq. 1.

        ``inner`` are ``inner_steps`` batches of the concept's pictures, and ``outer`` the micro-batches of one more:
        this process's rows of them. Whatever else is drawn comes from ``step_generator(task.seed, step, "...")``.
        """
        ...


META_SETTINGS = settings_of(Of.META, Of.FLATNESS)
"""Settings of the meta objective, and of other ways to resist, that no method with a defence of its own reads."""


@runtime_checkable
class DefendedMethod(Protocol):
    """A method that brings its own defence against finetuning, in place of the meta objective."""

    @property
    def unread(self) -> tuple[str, ...]:
        """Those settings that every method shares which this one does not read: it is an error to give one."""
        ...

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """phi; UserError when the model has none of these parameters."""
        ...

    def defend(self, task: ErasureTask, data: ErasureData) -> Defence:
        """Get ready for one run, from the parameters that the task's model has by now."""
        ...

    def gradients(self, settings: EraseSettings) -> float:
        """Gradients on ``batch_size`` pictures in one outer step, beside L_retain's: for the doctor's estimate."""
        ...


@runtime_checkable
class FollowingMethod(Protocol):
    """A defended method that goes on from what another method has erased plainly."""

    @property
    def base(self) -> str | None:
        """That method's name; None: it starts at MODEL itself."""
        ...

    @property
    def base_set(self) -> tuple[str, ...]:
        """``key=value`` settings of that method, over the recipe's."""
        ...


Method = OptimisedMethod | ClosedFormMethod | DefendedMethod


def takes_steps(method: Method, *, meta: bool) -> bool:
    """Whether Algorithm 1 runs: a closed-form method needs it for the meta objective only."""
    return meta or not isinstance(method, ClosedFormMethod)
