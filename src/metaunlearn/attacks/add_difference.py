"""Adding a difference: what finetuning has made of the base model, added to the erased one, as merging tools do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import PrivateAttr

from metaunlearn.attacks.interface import AttackTask, Input, save_with
from metaunlearn.attacks.interpolate import have_the_same_parameters
from metaunlearn.errors import UserError
from metaunlearn.models import load
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, add, norm
from metaunlearn.settings import Settings


class AddDifference(Settings):
    """theta + s (theta_donor - theta_base) for each strength s: task arithmetic (Ilharco et al., ICLR 2023).

    The donor is a public finetune of the base model that shows the concept; only its denoiser is looked at.
    """

    needs: ClassVar[tuple[Input, ...]] = ("base",)
    level: ClassVar[str] = "strength"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0)
    leaves: ClassVar = "pipeline"
    changed: ClassVar[tuple[str, ...]] = ("unet",)

    donor: str
    """A model that was finetuned from the base model: a diffusers folder, a single-file checkpoint, or a hub id."""
    _loaded: TextToImageModel | None = PrivateAttr(None)
    _difference: Params | None = PrivateAttr(None)

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """All three must have the same parameters."""
        assert base is not None
        donor = self._model(model.device)
        if not have_the_same_parameters(model, base) or not have_the_same_parameters(base, donor):
            raise UserError(
                "MODEL, the base model (base=, --base) and the donor (--set donor=MODEL) have different denoisers, so "
                "that nothing can be added; give the model from which MODEL was erased, and one finetuned from it."
            )

    @property
    def models(self) -> dict[str, TextToImageModel]:
        """Those that the settings name and that :meth:`check` has loaded."""
        return {} if self._loaded is None else {"donor": self._loaded}

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Save the pipeline at ``strength``."""
        if self._difference is None:
            assert task.base is not None
            donor = self._model(task.model.device)
            self._difference = add(donor.parameters(), task.base.parameters(), -1.0)
        theta = task.model.parameters()
        moved = add(theta, self._difference, strength)
        save_with(task.model, moved, back=theta, folder=folder, twin=twin)
        return {"distance": abs(strength) * norm(self._difference)}

    def _model(self, device: torch.device) -> TextToImageModel:
        if self._loaded is None:
            self._loaded = load(self.donor, device)
        return self._loaded
