"""Algorithm 1: the outer loop of erasing, with the meta objective or without, and the healing after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.latents import ErasureData
from metaunlearn.data.sampling import Epochs, Independent
from metaunlearn.diffusion import denoising_loss_of
from metaunlearn.erasure.given import checked_batch
from metaunlearn.erasure.interface import Defence, ForgetLoss, Moving, moving_part
from metaunlearn.errors import RunError
from metaunlearn.meta.batches import OuterDraw, draw, draw_attacker, draw_retained, inner_batches_before
from metaunlearn.meta.diagnostics import diagnose
from metaunlearn.meta.flatness import sharpness, steepness
from metaunlearn.meta.hypergradient import FirstOrder, MetaGradientMode, MetaProblem
from metaunlearn.meta.modes import chosen_step, difference_products, resolve_in_memory, usual_product, with_step
from metaunlearn.meta.objective import (
    direct_loss,
    forget_loss,
    l_retain,
    losses_at_theta,
    meta_problem,
    retain_weights,
    zeta_weights,
)
from metaunlearn.meta.outer import clipped_step, outer_optimizer
from metaunlearn.meta.persistent import PersistentAttack, has_a_turn
from metaunlearn.meta.phases import healing, learning_rate_at
from metaunlearn.meta.together import check_shares
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.precision import float32_products, in_precision, products_in
from metaunlearn.parameters import (
    Params,
    accumulate,
    add,
    mean_of,
    moved_average,
    norm,
    same,
    scale,
    value_and_gradient,
)
from metaunlearn.processes import ALONE, Processes
from metaunlearn.shards import are_pieces, piece, whole

logger = logging.getLogger(__name__)

Record = dict[str, Any]

TERMS = "losses"
"""Where the losses travel when the gradient at theta is averaged over processes."""
AVERAGE = "average_of_theta."
"""Prefix of the moving average in a training state."""
CHOSEN = "chosen_by_auto"
"""Where a training state has what ``meta_gradient=auto`` chose."""
PROBES = 3
"""Draws on which ``auto`` compares, of each kind of attacker: one may happen to fit a step too long."""


class Algorithm1:
    """One erasing run: ``theta`` moves from the model's parameters to the (meta-)unlearned ones.

    The model's are theta* for an optimised method, whose ``forget`` is part of each step, and theta^UN for a
    closed-form one, whose second stage has no forget loss (Algorithm 1, lines 4-7 and 11); that it retains is ours. A
    defended method shares the loop, without the meta objective, and has a ``defence``.
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
        teacher: Params | None = None,
        defence: Defence | None = None,
        processes: Processes = ALONE,
    ) -> None:
        check_shares(settings, processes, meta=meta)
        self.model, self.data, self.forget, self.settings = model, data, forget, settings
        self.processes = processes
        self.defence = defence
        """Of a defended method, in place of a forget loss and of the meta objective."""
        self.moving: Moving | None = moving_part(defence if forget is None else forget)
        self.meta, self.seed = meta, seed
        self.theta: Params = model.parameters()
        self.trained = sorted(trained)
        self.optimizer = outer_optimizer([self.theta[name] for name in self.trained], settings)
        self.first_order_model = model.in_precision(settings.precision)
        """For passes whose gradient is no part of a difference."""
        self.teacher: Params | None = None
        """Whose answers L_retain asks for, when it is a distillation: ``teacher``, or where theta starts."""
        if settings.retain_loss == "distillation":
            self.teacher = in_precision(teacher or model.parameters(), settings.teacher_precision)
        self.average: Params | None = None
        """The moving average of what is trained, when ``ema_decay`` asks for one."""
        if settings.ema_decay is not None:
            self.average = {name: self.theta[name].clone() for name in self.trained}
        self.attack = self._attack_next = self._new_attack()
        """The simulated attacker that goes on from turn to turn, when ``inner_horizon`` asks for one; and where it is
        once theta has moved."""
        self.sampler = Independent() if settings.replacement else Epochs(seed)
        self.step = 0
        self.products = difference_products(settings)
        """What a gradient difference computes in."""
        self._mode: MetaGradientMode | None = None

    def mode(self) -> MetaGradientMode | None:
        """How the meta-gradient is taken, None without one; ``auto`` compares and chooses when first asked."""
        if self.meta and self._mode is None:
            s = self.settings
            with float32_products("ieee"):
                self._mode = resolve_in_memory(
                    s.meta_gradient, self.theta, self._probes, s.batch_size,
                    products=self.products, processes=self.processes,
                )  # fmt: skip
        return self._mode

    def _probes(self, batch_size: int) -> list[MetaProblem]:
        """Meta problems like those to come, ``PROBES`` for each kind of attacker, with this process's rows of
        ``batch_size``. Their losses are this process's own.
        """
        settings = self.settings.model_copy(update={"batch_size": batch_size})
        found = []
        for attacker in dict.fromkeys(settings.simulated):
            for number in range(PROBES):
                drawn = self._draw(0, attacker, self._generator(number), settings)
                parts = drawn.own(self.processes, settings.accumulation)
                found.append(
                    meta_problem(self.model, parts, attacker, settings, theta=self.theta, trained=self.trained)
                )
        return found

    def _problem(
        self, model: TextToImageModel, parts: Sequence[OuterDraw], attacker: Attacker, settings: EraseSettings
    ) -> MetaProblem:
        return meta_problem(model, parts, attacker, settings, self.processes, theta=self.theta, trained=self.trained)

    def run(self, state: Path | None, on_step: Callable[[Record], None]) -> Params:
        """Take the remaining outer steps; save to ``state`` every ``checkpoint_every`` steps; return the result."""
        while self.step < self.settings.total_steps:
            on_step(self.take_step())
            if state is not None and self.step % self.settings.checkpoint_every == 0:
                self.save(state)
        self.processes.check_same(self._trained_theta(), self.step)
        return self._result()

    def _result(self) -> Params:
        """What would be saved if the run ended here."""
        reached = self.theta if self.average is None else self.theta | self.average
        return reached if self.moving is None else self.moving.result(reached)

    def _new_attack(self) -> PersistentAttack | None:
        horizon = self.settings.inner_horizon
        return PersistentAttack(horizon=horizon) if self.meta and horizon is not None else None

    def _begin_healing(self) -> None:
        """theta becomes what the first phase would have saved, and gets a fresh optimiser."""
        erased = self._result()
        with torch.no_grad():
            for name, p in self._trained_theta().items():
                p.copy_(erased[name])
        self.average = self.moving = self.attack = self._attack_next = None
        self.optimizer = outer_optimizer(list(self._trained_theta().values()), self.settings)

    def _generator(self, step: int) -> torch.Generator:
        return step_generator(self.seed, step, "outer")

    def _draw(
        self, step: int, attacker: Attacker, generator: torch.Generator, settings: EraseSettings | None = None
    ) -> OuterDraw:
        settings, forget = settings or self.settings, None
        if self.forget is not None:
            size = settings.batch_size * settings.accumulation
            forget = self.forget.batch(self.theta, step, size, generator)
            checked_batch(self.forget, forget, self.model, size, first=step == 0)
        return draw(
            self.data,
            settings,
            attacker,
            generator,
            forget,
            sampler=self.sampler,
            step=step,
            inner_before=inner_batches_before(self.settings, step, self._generator),
        )

    def outer_gradient(self) -> tuple[dict[str, Tensor], Record]:
        """g = gamma_1 grad L_unlearn + gamma_2 grad L_meta, restricted to what is trained at the very end.

        A defence's own loss stands in the place of L_forget in L_unlearn, and there is no L_meta.
        Also what ``log.jsonl`` says of this step. Nothing moves.
        """
        generator = self._generator(self.step)
        attacker = draw_attacker(self.settings.simulated, generator)
        parts = self._draw(self.step, attacker, generator).own(self.processes, self.settings.accumulation)
        every = self.settings.diagnostics_every
        diagnosed = every > 0 and self.step % every == 0
        problem = meta = direct = None
        start = self.theta
        of_meta: Record = {}
        mode = self.mode()
        if mode is not None:
            model = self.first_order_model if isinstance(mode, FirstOrder) else self.model
            problem = self._problem(model, parts, attacker, self.settings)
            turn = self.attack if has_a_turn(self.step) else None
            if turn is not None:
                start = turn.start(self.theta)
                of_meta["attack_steps_before"] = turn.steps
            keep_final = diagnosed or turn is not None
            meta = mode(replace(problem, with_first_order=diagnosed, keep_final=keep_final), start)
            if turn is not None:
                self._attack_next = turn.after(self.theta, meta.theta_final, problem.inner, attacker.steps)
            of_meta |= {"loss_meta_at_theta_m": meta.outer_value, "loss_finetuning": meta.inner_losses}
        # After the meta-gradient, which needs the most memory: so this one is not there yet.
        gradient, record = self._gradient_at_theta(parts)
        record |= of_meta
        if meta is not None:
            accumulate(gradient, meta.gradient, self.settings.gamma2)
            if meta.active is not None:
                direct = self._direct_gradient(parts, meta.active)
                gradient = add(gradient, direct, self.settings.gamma2)
        if self.defence is not None:
            found = self.defence.gradient(self.theta, self.step, parts[0].inner, [part.outer for part in parts])
            record |= found.record
            accumulate(gradient, found.gradient, self.settings.gamma1)
        for term in self._flatness(parts, record):
            accumulate(gradient, term, self.settings.gamma1)
        if self.meta and self.settings.attackers:
            record["attacker"] = attacker.model_dump()
        self._check(record, gradient)
        if diagnosed:
            if problem is not None and self.first_order_model is not self.model:
                # Its losses may be in half precision, and an exact meta-gradient to compare with wants float32.
                problem = self._problem(self.model, parts, attacker, self.settings)
            with float32_products("ieee"):
                record["diagnostics"] = diagnose(
                    self.model,
                    self.settings,
                    self.theta,
                    parts,
                    self.trained,
                    mode=mode,
                    problem=problem,
                    found=meta,
                    direct=direct,
                    start=start,
                    processes=self.processes,
                )
        return gradient, record

    def heal_gradient(self) -> tuple[dict[str, Tensor], Record]:
        """lambda grad L_retain, restricted to what is trained, and what ``log.jsonl`` says. Nothing moves."""
        s = self.settings
        generator = step_generator(self.seed, self.step, "heal")
        kept = draw_retained(self.data, s, generator, sampler=self.sampler, step=self.step)
        loss = mean_of(
            [
                l_retain(self.first_order_model, part, retain_weights(s), self.teacher)
                for part in kept.own(self.processes, s.accumulation)
            ]
        )
        value, gradient = value_and_gradient(self.processes.shared(loss), self.theta, self.trained)
        record: Record = {"phase": "heal", "loss_retain": value.item()}
        gradient = scale(gradient, s.retain_weight)
        self._check(record, gradient)
        return gradient, record

    def take_step(self) -> Record:
        """theta moves along -g."""
        heals = healing(self.step, self.settings)
        if heals and self.step == self.settings.steps:
            self._begin_healing()
        with products_in(self.settings.precision):
            gradient, record = self.heal_gradient() if heals else self.outer_gradient()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.settings)
        moving = {name: self.theta[name] for name in self.trained}
        length = clipped_step(self.optimizer, moving, gradient, self.settings.max_gradient_norm)
        self.attack = self._attack_next
        self.step += 1
        if self.average is not None and self.settings.ema_decay is not None:
            self.average = moved_average(self.average, self.theta, self.settings.ema_decay)
        if self.moving is not None:
            self.moving.after_step(self.theta, self.step)
        return {"step": self.step, **record, "gradient_norm": whole(length).item()}

    def _gradient_at_theta(self, parts: Sequence[OuterDraw]) -> tuple[dict[str, Tensor], Record]:
        """Everything that is evaluated at theta: gamma_1 (L_forget + lambda L_retain) + gamma_2 zeta L_DM(D_retain)."""
        s = self.settings
        # With a margin it takes more than theta to say which pictures it has.
        has_direct = self.meta and s.direct_term and s.zeta_margin is None
        at_teacher = self.step == 0 and self.teacher is not None and same(self.theta, self.teacher)
        gradient: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        for batches in parts:  # One at a time: gradients add up, while what autograd keeps does not.
            leaves = {name: self.theta[name].detach().requires_grad_() for name in self.trained}
            losses = losses_at_theta(
                self.first_order_model,
                self.theta | leaves,
                batches,
                direct=has_direct,
                retain=retain_weights(s),
                zeta=zeta_weights(s),
                teacher=self.teacher,
                at_teacher=at_teacher,
            )
            total = s.gamma1 * (losses.forget + s.retain_weight * losses.retain)
            if has_direct:
                total = total + s.gamma2 * s.zeta * losses.direct
            one = torch.autograd.grad(total / len(parts), list(leaves.values()))
            for name, g in zip(leaves, one, strict=True):
                gradient[name] = gradient[name] + g if name in gradient else g
            del one
            terms.append(torch.stack([losses.forget, losses.retain]).detach())
        averaged = self.processes.average(gradient | {TERMS: torch.stack(terms).mean(dim=0)})
        forget, retain = averaged.pop(TERMS).tolist()
        record = {"loss_forget": forget} if parts[0].forget is not None else {}
        return averaged, record | {"loss_retain": retain}

    def _direct_gradient(self, parts: Sequence[OuterDraw], active: Tensor) -> dict[str, Tensor]:
        """zeta grad of the direct term on the pictures that are ``active``, (K, B), over what is trained."""
        s = self.settings
        loss = direct_loss(self.first_order_model, parts, zeta_weights(s), active)
        return scale(value_and_gradient(self.processes.shared(loss), self.theta, self.trained).gradient, s.zeta)

    def _flatness(self, parts: Sequence[OuterDraw], record: Record) -> Iterator[Params]:
        """The gradients of the penalties that are asked for, to be added to L_unlearn's; ``record`` says their size."""
        s, share = self.settings, self.processes.shared
        if s.lipschitz_weight:
            concept = share(mean_of([denoising_loss_of(self.model, part.outer) for part in parts]))
            steep = steepness(concept, self.theta, usual_product(self.theta))
            record["concept_slope"] = steep.value
            yield scale(steep.gradient, s.lipschitz_weight)
        batches = [part.forget for part in parts if part.forget is not None]
        if s.sharpness_radius and batches:
            forget = share(mean_of([forget_loss(self.first_order_model, batch) for batch in batches]))
            sharp = sharpness(forget, self.theta, s.sharpness_radius)
            record["sharpness"] = sharp.value.item()
            yield sharp.gradient

    def _check(self, record: Record, gradient: dict[str, Tensor]) -> None:
        losses = [value for key, value in record.items() if key.startswith("loss_")]
        numbers = [x for value in losses for x in (value if isinstance(value, list) else [value])]
        # The norm is not finite where any of them is not, and asks the device once.
        if all(math.isfinite(x) for x in [*numbers, norm(gradient)]):
            return
        raise RunError(
            f"a loss or a gradient is not finite at step {self.step + 1} ({record}); the last good state was kept. "
            "Begin anew in another folder, with a lower learning_rate, gamma2, inner_learning_rate or, while healing, "
            "heal_learning_rate (--set learning_rate=...)."
        )

    def save(self, file: Path) -> None:
        """Keep what a resumed run needs, in the main process, if all agree on it."""
        self.processes.check_same(self._trained_theta(), self.step)
        if not self.processes.main and not are_pieces(self.theta.values()):
            return
        more = {} if self.moving is None else self.moving.state()
        more |= {f"{AVERAGE}{name}": p for name, p in (self.average or {}).items()}
        more |= {} if self.attack is None else self.attack.state()
        if self._mode is not None and self.settings.meta_gradient == "auto":
            more[CHOSEN] = torch.tensor(chosen_step(self._mode, self.theta), dtype=torch.float64)
        save_training(file, self._trained_theta(), self.optimizer, self.step, more, writes=self.processes.main)

    def restore(self, file: Path) -> None:
        """Go on from what :meth:`save` kept."""
        self.step, more = restore_training(file, self._trained_theta(), self.optimizer)
        chosen = more.pop(CHOSEN, None)
        if chosen is not None:
            self._mode = with_step(chosen.item(), self.products)
        if self.step > self.settings.steps:  # Healing has begun: what the first phase kept is part of theta.
            self.average = self.moving = self.attack = None
        if self.attack is not None:
            self.attack = self.attack.restored(more, self.theta)
        self._attack_next = self.attack
        if self.average is not None:
            self.average = {name: piece(more.pop(f"{AVERAGE}{name}"), p) for name, p in self.average.items()}
        if self.moving is not None:
            self.moving.restore(more)

    def _trained_theta(self) -> Params:
        return {name: self.theta[name] for name in self.trained}
