"""Algorithm 1: the outer loop of erasing, with the meta objective or without."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.erasure.interface import ForgetLoss, MovingForgetLoss
from metaunlearn.errors import RunError
from metaunlearn.meta.hypergradient import FirstOrder, MetaGradientMode, resolve
from metaunlearn.meta.objective import ErasureData, OuterDraw, draw, draw_attacker, losses_at_theta, meta_problem
from metaunlearn.meta.outer import outer_optimizer
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Algorithm1:
    """One erasing run: ``theta`` moves from the model's parameters to the (meta-)unlearned ones.

    The model's are theta* for an optimised method, whose ``forget`` is part of each step, and theta^UN for a
    closed-form one, whose second stage has no forget loss (Algorithm 1, lines 4-7 and 11).
    """

    def __init__(
        self,
        model: TextToImageModel,
        data: ErasureData,
        forget: ForgetLoss | None,
        settings: EraseSettings,
        *,
        trained: Collection[str],
        meta: bool,
        seed: int,
    ) -> None:
        self.model, self.data, self.forget, self.settings = model, data, forget, settings
        self.moving = forget if isinstance(forget, MovingForgetLoss) else None
        self.meta, self.seed = meta, seed
        self.theta: Params = model.parameters()
        self.trained = sorted(trained)
        self.optimizer = outer_optimizer([self.theta[name] for name in self.trained], settings)
        self.first_order_model = model.in_precision(settings.precision)
        """For passes whose gradient is no part of a difference."""
        self.step = 0
        self.mode: MetaGradientMode | None = None
        if meta:
            probes = [
                meta_problem(model, self._draw(0, attacker, self._generator(0)), attacker, settings)
                for attacker in dict.fromkeys(settings.simulated)
            ]
            self.mode = resolve(settings.meta_gradient, self.theta, *probes)

    def run(self, state: Path | None, on_step: Callable[[Record], None]) -> Params:
        """Take the remaining outer steps; save to ``state`` every ``checkpoint_every`` steps; return the result."""
        while self.step < self.settings.steps:
            on_step(self._outer_step())
            if state is not None and self.step % self.settings.checkpoint_every == 0:
                self.save(state)
        return self.theta if self.moving is None else self.moving.result(self.theta)

    def _generator(self, step: int) -> torch.Generator:
        return step_generator(self.seed, step, "outer")

    def _draw(self, step: int, attacker: Attacker, generator: torch.Generator) -> OuterDraw:
        forget = None
        if self.forget is not None:
            forget = self.forget.batch(self.theta, step, self.settings.batch_size, generator)
        return draw(self.data, self.settings, attacker.steps, generator, forget)

    def _outer_step(self) -> Record:
        """g = gamma_1 grad L_unlearn + gamma_2 grad L_meta, restricted to what is trained at the very end."""
        generator = self._generator(self.step)
        attacker = draw_attacker(self.settings.simulated, generator)
        batches = self._draw(self.step, attacker, generator)
        gradient, record = self._gradient_at_theta(batches)
        if self.mode is not None:
            exact = not isinstance(self.mode, FirstOrder)
            model = self.model if exact else self.first_order_model
            problem = meta_problem(model, batches, attacker, self.settings)
            meta = self.mode(problem, self.theta)
            record |= {"loss_meta_at_theta_m": meta.outer_value, "loss_finetuning": meta.inner_losses}
            for name in self.trained:
                gradient[name] = gradient[name] + self.settings.gamma2 * meta.gradient[name]
        self._check(record, gradient)
        for name in self.trained:
            self.theta[name].grad = gradient[name]
        norm = torch.nn.utils.clip_grad_norm_(
            [self.theta[name] for name in self.trained], self.settings.max_gradient_norm
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.settings)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.moving is not None:
            self.moving.after_step(self.theta, self.step)
        drawn = {"attacker": attacker.model_dump()} if self.meta and self.settings.attackers else {}
        return {"step": self.step, **record, **drawn, "gradient_norm": norm.item()}

    def _gradient_at_theta(self, batches: OuterDraw) -> tuple[dict[str, Tensor], Record]:
        """Everything that is evaluated at theta: gamma_1 (L_forget + lambda L_retain) + gamma_2 zeta L_DM(D_retain)."""
        s = self.settings
        leaves = {name: self.theta[name].detach().requires_grad_() for name in self.trained}
        losses = losses_at_theta(self.first_order_model, self.theta | leaves, batches, meta=self.meta)
        total = s.gamma1 * (losses.forget + s.retain_weight * losses.retain)
        if self.meta:
            total = total + s.gamma2 * s.zeta * losses.direct
        gradients = torch.autograd.grad(total, list(leaves.values()))
        record = {"loss_forget": losses.forget.item()} if batches.forget is not None else {}
        record["loss_retain"] = losses.retain.item()
        return dict(zip(leaves, gradients, strict=True)), record

    def _check(self, record: Record, gradient: dict[str, Tensor]) -> None:
        numbers = [x for value in record.values() for x in (value if isinstance(value, list) else [value])]
        if all(math.isfinite(x) for x in numbers) and all(g.isfinite().all() for g in gradient.values()):
            return
        raise RunError(
            f"a loss or a gradient is not finite at step {self.step + 1} ({record}); the last good state was kept. "
            "Lower learning_rate, gamma2 or inner_learning_rate (--set learning_rate=...)."
        )

    def save(self, file: Path) -> None:
        """Keep what a resumed run needs."""
        moving = {} if self.moving is None else self.moving.state()
        save_training(file, self._trained_theta(), self.optimizer, self.step, moving)

    def restore(self, file: Path) -> None:
        """Go on from what :meth:`save` kept."""
        self.step, moving = restore_training(file, self._trained_theta(), self.optimizer)
        if self.moving is not None:
            self.moving.restore(moving)

    def _trained_theta(self) -> Params:
        return {name: self.theta[name] for name in self.trained}


def learning_rate_at(step: int, settings: EraseSettings) -> float:
    """omega at outer step ``step`` (from 0 to N - 1): constant, or omega (1 + cos(pi step / N)) / 2."""
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
