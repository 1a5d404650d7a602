"""LoRA (Hu et al., ICLR 2022) as an attack: only a low-rank change of chosen matrices is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.attacks.interface import AttackTask, Training
from metaunlearn.checkpoint import save_tensors, step_generator
from metaunlearn.config import AttackSettings
from metaunlearn.data.latents import LatentSet
from metaunlearn.diffusion import denoising_loss, part
from metaunlearn.lowrank import ATTENTION, check_targets, merged, new_factors
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params
from metaunlearn.settings import Listed

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers' ``load_lora_weights`` looks for."""


class Lora(AttackSettings):
    """B A of every target moves along L_DM on the attacker's pictures; defaults as in diffusers' example script."""

    copies: ClassVar[tuple[str, ...]] = ()

    learning_rate: float = Field(default=1e-4, gt=0)
    """Of the attacker's optimiser."""
    rank: int = Field(default=4, gt=0)
    """r, of the change."""
    alpha: float | None = Field(default=None, gt=0)
    """The change is scaled by alpha / r; without it alpha is r."""
    targets: Annotated[tuple[str, ...], Listed] = Field(default=ATTENTION, min_length=1)
    """Layers that get a low-rank change, by the end of their name."""

    @property
    def scale(self) -> float:
        """alpha / r."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def check(self, model: TextToImageModel) -> None:
        """Every target must be a layer of ``model`` with a matrix."""
        check_targets(dict(model.unet.named_parameters()), self.targets)

    def begin(self, task: AttackTask) -> Training:
        """Encode the pictures and draw A; B is zero, so that the attack starts at the model itself."""
        theta = task.model.parameters()
        data = LatentSet.encode(task.model, task.data.images, task.data.texts)
        factors = new_factors(theta, self.targets, self.rank, step_generator(task.seed, 0, "lora"))

        def loss(generator: torch.Generator) -> Tensor:
            own = task.processes.own(self.batch_size)
            batch = part(data.draw(self.batch_size, generator, stratified=False), own.start, own.stop)
            return denoising_loss(task.model, merged(theta, factors, self.scale), batch)

        def write() -> None:
            task.model.load_parameters(merged(theta, factors, self.scale))

        def beside(folder: Path) -> None:
            save_factors(folder / WEIGHTS_FILE, factors, self.rank, self.scale * self.rank)

        return Training(trained=factors, loss=loss, write=write, beside=beside)


def save_factors(file: Path, factors: Params, rank: int, alpha: float) -> None:
    """Write the factors as peft names them, with what diffusers needs to build the same layers."""
    layers = sorted({name.rpartition(".")[0] for name in factors})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": layers}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config.items()})}
    save_tensors(file, {f"unet.{name}.weight": factor for name, factor in factors.items()}, metadata)
