"""The attacker's finetuning: plain denoising training of the denoiser on a folder of pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import AttackSettings
from metaunlearn.data.latents import LatentSet
from metaunlearn.diffusion import denoising_loss
from metaunlearn.errors import RunError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, subset


def make_optimizer(parameters: list[torch.Tensor], settings: AttackSettings) -> torch.optim.Optimizer:
    """The attacker's optimiser over ``parameters``."""
    rate = settings.learning_rate
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9 if settings.optimizer == "momentum" else 0.0)


class Finetuning:
    """One attack: ``theta`` moves from the erased model along L_DM on the attacker's pictures."""

    def __init__(self, model: TextToImageModel, data: LatentSet, settings: AttackSettings, *, seed: int) -> None:
        self.model, self.data, self.settings, self.seed = model, data, settings, seed
        self.theta: Params = model.parameters()
        self.trained = sorted(subset(self.theta, settings.subset))
        for name in self.trained:
            self.theta[name].requires_grad_()
        self.optimizer = make_optimizer([self.theta[name] for name in self.trained], settings)
        self.step = 0

    def run_to(self, step: int, state: Path | None, on_step: Callable[[dict[str, Any]], None]) -> Params:
        """Finetune until ``step`` steps are done; return the parameters then."""
        while self.step < step:
            generator = step_generator(self.seed, self.step, "attack")
            batch = self.data.draw(self.settings.batch_size, generator, stratified=False)
            loss = denoising_loss(self.model, self.theta, batch)
            if not math.isfinite(loss.item()):
                raise RunError(
                    f"the finetuning loss is not finite at step {self.step + 1}; the checkpoints before it were kept. "
                    "Lower learning_rate (--set learning_rate=...)."
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            on_step({"step": self.step, "loss": loss.item()})
            if state is not None and self.step % self.settings.checkpoint_every == 0:
                self.save(state)
        return {name: p.detach().clone() for name, p in self.theta.items()}

    def save(self, file: Path) -> None:
        """Keep what a resumed run needs."""
        save_training(file, self._trained_theta(), self.optimizer, self.step)

    def restore(self, file: Path) -> None:
        """Go on from what :meth:`save` kept."""
        self.step, _ = restore_training(file, self._trained_theta(), self.optimizer)

    def _trained_theta(self) -> Params:
        return {name: self.theta[name] for name in self.trained}
