"""Finetuning: plain denoising training on a folder of pictures. The paper's attack (section 5, Appendix E.2)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from metaunlearn.attacks.interface import AttackTask, Training
from metaunlearn.attacks.tuned import Tuned
from metaunlearn.config import AttackSettings
from metaunlearn.diffusion import denoising_loss
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import subset


class Finetune(AttackSettings):
    """theta, or a subset of it, moves along L_DM on the attacker's pictures."""

    copies: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")

    subset: str = "f"
    """Denoiser parameters that the attacker trains: x, x-strict, first-xattn, u, selfattn or f (all)."""
    text_encoder: bool = False
    """Whether the text encoders are trained too, as far as they reach the denoiser."""

    def check(self, model: TextToImageModel) -> None:
        """The subset must be one that ``model`` has."""
        subset(model.parameter_names, self.subset)

    def begin(self, task: AttackTask) -> Training:
        """Encode the pictures, and take the parameters."""
        tuned = Tuned(task.model, self.subset, text_encoder=self.text_encoder, processes=task.processes)
        data = tuned.encode(task.data)

        def loss(generator: torch.Generator) -> Tensor:
            return denoising_loss(task.model, tuned.theta, tuned.draw(data, self.batch_size, generator))

        return Training(trained=tuned.trained, loss=loss, write=tuned.write, changed=tuned.changed)
