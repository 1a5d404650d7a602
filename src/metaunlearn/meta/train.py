"""Algorithm 1: the outer loop of erasing, with the meta objective or without."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import EraseSettings
from metaunlearn.erasure.esd import EsdMethod
from metaunlearn.errors import RunError
from metaunlearn.meta.hypergradient import MetaGradientMode, resolve
from metaunlearn.meta.objective import ErasureData, OuterDraw, draw, draw_attacker, losses_at_theta, meta_problem
from metaunlearn.models.sd import StableDiffusion
from metaunlearn.parameters import Params, subset

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Algorithm1:
    """One erasing run: ``theta`` moves from theta* to the (meta-)unlearned parameters."""

    def __init__(
        self,
        model: StableDiffusion,
        data: ErasureData,
        method: EsdMethod,
        settings: EraseSettings,
        *,
        meta: bool,
        seed: int,
    ) -> None:
        self.model, self.data, self.method, self.settings = model, data, method, settings
        self.meta, self.seed = meta, seed
        self.theta: Params = model.parameters()
        self.trained = sorted(subset(self.theta, method.subset))
        self.optimizer = torch.optim.AdamW(
            [self.theta[name] for name in self.trained], lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0
        self.mode: MetaGradientMode | None = None
        if meta:
            probes = [
                meta_problem(model, draw(data, settings, attacker.steps, self._generator(0)), attacker, settings)
                for attacker in dict.fromkeys(settings.simulated)
            ]
            self.mode = resolve(settings.meta_gradient, self.theta, *probes)

    def run(self, state: Path | None, on_step: Callable[[Record], None]) -> Params:
        """Take the remaining outer steps; save to ``state`` every ``checkpoint_every`` steps; return theta."""
        while self.step < self.settings.steps:
            on_step(self._outer_step())
            if state is not None and self.step % self.settings.checkpoint_every == 0:
                self.save(state)
        return self.theta

    def _generator(self, step: int) -> torch.Generator:
        return step_generator(self.seed, step, "outer")

    def _outer_step(self) -> Record:
        """g = gamma_1 grad L_unlearn + gamma_2 grad L_meta, restricted to the method's subset at the very end."""
        generator = self._generator(self.step)
        attacker = draw_attacker(self.settings.simulated, generator)
        batches = draw(self.data, self.settings, attacker.steps, generator)
        gradient, record = self._gradient_at_theta(batches)
        if self.mode is not None:
            problem = meta_problem(self.model, batches, attacker, self.settings)
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
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        drawn = {"attacker": attacker.model_dump()} if self.meta and self.settings.attackers else {}
        return {"step": self.step, **record, **drawn, "gradient_norm": norm.item()}

    def _gradient_at_theta(self, batches: OuterDraw) -> tuple[dict[str, Tensor], Record]:
        """Everything that is evaluated at theta: gamma_1 (L_forget + lambda L_retain) + gamma_2 zeta L_DM(D_retain)."""
        s = self.settings
        leaves = {name: self.theta[name].detach().requires_grad_() for name in self.trained}
        losses = losses_at_theta(self.model, self.theta | leaves, self.data, batches, self.method.eta, meta=self.meta)
        total = s.gamma1 * (losses.forget + s.retain_weight * losses.retain)
        if self.meta:
            total = total + s.gamma2 * s.zeta * losses.direct
        gradients = torch.autograd.grad(total, list(leaves.values()))
        record = {"loss_forget": losses.forget.item(), "loss_retain": losses.retain.item()}
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
        save_training(file, self._trained_theta(), self.optimizer, self.step)

    def restore(self, file: Path) -> None:
        """Go on from what :meth:`save` kept."""
        self.step = restore_training(file, self._trained_theta(), self.optimizer)

    def _trained_theta(self) -> Params:
        return {name: self.theta[name] for name in self.trained}
