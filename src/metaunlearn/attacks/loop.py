"""The attacker's training loop, the same for every attack that trains: resumable bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaunlearn.attacks.interface import Training
from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import AttackSettings
from metaunlearn.errors import RunError
from metaunlearn.models.precision import products_in
from metaunlearn.processes import ALONE, Processes

MOMENTUM = 0.9


def make_optimizer(parameters: list[torch.Tensor], settings: AttackSettings) -> torch.optim.Optimizer:
    """The attacker's optimiser over ``parameters``."""
    rate = settings.rate
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM if settings.optimizer == "momentum" else 0.0)


class Loop:
    """Descends a training's loss, one optimiser step for ``accumulation`` batches."""

    def __init__(
        self, training: Training, settings: AttackSettings, *, seed: int, processes: Processes = ALONE
    ) -> None:
        processes.check_divides(settings.batch_size, "batches")
        self.training, self.settings, self.seed = training, settings, seed
        self.processes = processes
        for leaf in training.trained.values():
            leaf.requires_grad_()
        self.optimizer = make_optimizer(list(training.trained.values()), settings)
        self.step = 0

    def run_to(self, step: int, state: Path | None, on_step: Callable[[dict[str, Any]], None]) -> None:
        """Train until ``step`` steps are done; ``state`` is kept every ``checkpoint_every`` steps."""
        while self.step < step:
            with products_in(self.settings.precision):
                loss = self._gradient(step_generator(self.seed, self.step, "attack"))
            if not math.isfinite(loss):
                raise RunError(
                    f"the attack's loss is not finite at step {self.step + 1}; the checkpoints before it were kept. "
                    "Begin anew in another folder, with a lower learning_rate (--set learning_rate=...)."
                )
            self.optimizer.step()
            self.step += 1
            on_step({"step": self.step, "loss": loss})
            if state is not None and self.step % self.settings.checkpoint_every == 0:
                self.keep(state)

    def _gradient(self, generator: torch.Generator) -> float:
        """Leave the mean gradient of ``accumulation`` batches in the leaves; return their mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(self.settings.accumulation):
            loss = self.training.loss(generator) / self.settings.accumulation
            total += loss.item()
            if math.isfinite(total):
                loss.backward()
        return self._averaged(total)

    def _averaged(self, total: float) -> float:
        """``total``, a loss, and the leaves' gradients, both averaged over the processes."""
        if self.processes.count == 1:
            return total
        leaves = self.training.trained
        total = self.processes.average({"loss": torch.tensor(total, dtype=torch.float64)})["loss"].item()
        if math.isfinite(total):  # Elsewhere too, so every process has its gradients.
            for name, g in self.processes.average({name: _gradient(leaf) for name, leaf in leaves.items()}).items():
                leaves[name].grad = g
        return total

    def keep(self, file: Path) -> None:
        """Keep what a resumed run needs, in the main process, if all agree on it."""
        self.processes.check_same(self.training.trained, self.step)
        if self.processes.main:
            save_training(file, self.training.trained, self.optimizer, self.step)

    def restore(self, file: Path) -> None:
        """Go on from what :meth:`keep` kept."""
        self.step, _ = restore_training(file, self.training.trained, self.optimizer)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
