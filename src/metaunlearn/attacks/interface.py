"""What an attack is: settings of its own, and one of two ways to work.

An attack that *trains* (finetuning, LoRA, DreamBooth, textual inversion) is prepared as a :class:`Training`, which
:class:`~metaunlearn.attacks.loop.Loop` runs to each step that is asked for. One that does *not train* (interpolation,
quantisation ...) makes a result for each strength. UnlearnDiffAtk, which attacks prompts and not the model, is neither:
:mod:`metaunlearn.attacks.unlearndiffatk`.

A kind is a subclass of :class:`~metaunlearn.settings.Settings`: its fields are keys of a recipe and of ``--set``. One
that can do without the captions of the attacker's pictures has ``caption``, which stands for those that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from metaunlearn.config import AttackSettings
from metaunlearn.data.imagefolder import ImageText
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params
from metaunlearn.pipelines import save_pipeline
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Progress

Input = Literal["data", "base"]
"""What a kind needs beside MODEL: the attacker's pictures, the model before the erasing."""


@dataclass(frozen=True, kw_only=True)
class AttackTask:
    """What a kind is given."""

    model: TextToImageModel
    """The erased model; the components that the kind ``copies`` are the attack's own, the others the caller's."""
    seed: int
    """Every random draw follows from it (:func:`~metaunlearn.checkpoint.step_generator`)."""
    out: Path
    """The run's folder."""
    cache: Path
    """A folder for what is expensive and needed again by a resumed run; it goes when the run is complete."""
    pictures: ImageText | None = None
    """The attacker's, for a kind that needs ``data``."""
    base: TextToImageModel | None = None
    """The model before the erasing, for a kind that needs ``base``."""
    progress: Progress | None = None
    processes: Processes = ALONE
    """Those that share the run: the loss of a training is that of this one's rows of a batch."""

    @property
    def data(self) -> ImageText:
        """The pictures of a kind that needs them."""
        assert self.pictures is not None, "attack() reads --data for every kind that needs it"
        return self.pictures


def save_with(model: TextToImageModel, moved: Params, *, back: Params, folder: Path, twin: Path | None) -> None:
    """Save the pipeline with ``moved`` as the denoiser's parameters; the model then gets ``back``, its own, again."""
    model.load_parameters(moved)
    save_pipeline(model, folder, twin=twin)
    model.load_parameters(back)


@dataclass(frozen=True, kw_only=True)
class Training:
    """An attack that trains, ready to run: what moves, along which loss, and what a checkpoint holds of it."""

    trained: Params
    """Leaves that the optimiser moves in place."""
    loss: Callable[[torch.Generator], Tensor]
    """The loss of one batch, a scalar; the batch, its noise and its timesteps come from the generator."""
    write: Callable[[], None]
    """Puts what was trained into the task's pipeline, which is then saved."""
    changed: Sequence[str] = ("unet",)
    """The pipeline's components that ``write`` changes."""
    beside: Callable[[Path], None] = field(default=lambda folder: None)
    """Puts further files beside a saved pipeline."""


@runtime_checkable
class TrainingKind(Protocol):
    """An attack that trains. Its settings are those of :class:`~metaunlearn.config.AttackSettings` and its own."""

    copies: ClassVar[Sequence[str]]
    """Components, beside the denoiser, that it may change."""

    @property
    def settings(self) -> AttackSettings:
        """What the loop goes by."""
        ...

    def check(self, model: TextToImageModel) -> None:
        """UserError when these settings do not fit ``model``; nothing else."""
        ...

    def begin(self, task: AttackTask) -> Training:
        """Prepare the run."""
        ...


@runtime_checkable
class EditKind(Protocol):
    """An attack that does not train."""

    needs: ClassVar[Sequence[Input]]
    level: ClassVar[str]
    """What a strength is called in a folder's name: ``strength``, ``bits``."""
    strengths: ClassVar[Sequence[float]]
    """Unless others are asked for."""
    leaves: ClassVar[Literal["pipeline", "pictures"]]
    """What a strength's folder holds: a pipeline, or an imagefolder."""
    changed: ClassVar[Sequence[str]]
    """The pipeline's components that it changes."""

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """UserError when these settings or strengths do not fit the models; nothing else."""
        ...

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Fill ``folder`` and return figures for the log; ``twin`` is a folder that this run filled before."""
        ...
