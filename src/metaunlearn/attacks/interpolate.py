"""Interpolation: a step from the erased weights back towards those of the published base model, or past them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from metaunlearn.attacks.interface import AttackTask, Input, save_with
from metaunlearn.errors import UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, add, norm
from metaunlearn.settings import Settings


class Interpolate(Settings):
    """theta + s (theta_base - theta) for each strength s: 0 is the erased model, 1 the base model."""

    needs: ClassVar[tuple[Input, ...]] = ("base",)
    level: ClassVar[str] = "strength"
    strengths: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.5, 0.75, 1.0)
    leaves: ClassVar = "pipeline"
    changed: ClassVar[tuple[str, ...]] = ("unet",)

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """Both models must have the same parameters."""
        assert base is not None
        if not have_the_same_parameters(model, base):
            raise UserError(
                "MODEL and the base model (base=, --base) have different denoisers, so that nothing lies between them; "
                "give the model from which MODEL was erased."
            )

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Save the pipeline at ``strength``."""
        assert task.base is not None
        theta, theta_base = task.model.parameters(), task.base.parameters()
        moved = interpolated(theta, theta_base, strength)
        save_with(task.model, moved, back=theta, folder=folder, twin=twin)
        return {"distance": norm(add(moved, theta, -1.0))}


def have_the_same_parameters(a: TextToImageModel, b: TextToImageModel) -> bool:
    """Whether the denoisers of both have parameters of the same names and shapes."""
    shapes = [{name: p.shape for name, p in which.unet.named_parameters()} for which in (a, b)]
    return shapes[0] == shapes[1]


def interpolated(theta: Params, theta_base: Params, strength: float) -> Params:
    """theta + s (theta_base - theta), bitwise theta at s = 0 and theta_base at s = 1."""
    # torch.lerp is exact at both ends, which theta + s (theta_base - theta) in floating point is not at s = 1.
    return {name: p.lerp(theta_base[name], strength) for name, p in theta.items()}
