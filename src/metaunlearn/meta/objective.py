"""Eq. 1 and Eq. 3 of the paper on concrete batches: what one outer step of Algorithm 1 minimises.

Two kinds of gradient make up an outer step. What is evaluated at theta itself takes one forward pass: L_forget,
lambda L_retain, and the direct term zeta L_DM(theta; D_retain) of Eq. 3. What lies at theta_M, after the simulated
finetuning, is a :class:`~metaunlearn.meta.hypergradient.MetaProblem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.diffusion import Batch, denoising_loss_of, joined, squared_errors
from metaunlearn.meta.batches import OuterDraw, RetainBatch
from metaunlearn.meta.clipping import Clipped
from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.optimizers import UpdateRule, update_rule
from metaunlearn.meta.store import STORES
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.precision import teachers_answer
from metaunlearn.parameters import Loss, Params, mean_of, subset
from metaunlearn.processes import ALONE, Processes


class KindWeights(NamedTuple):
    """What related and unrelated pictures weigh in a loss of retained pictures."""

    related: float
    unrelated: float


def retain_weights(settings: EraseSettings) -> KindWeights | None:
    """Of L_retain in Eq. 1; None: every picture weighs the same."""
    return _weights(settings.retain_related, settings.retain_unrelated)


def zeta_weights(settings: EraseSettings) -> KindWeights | None:
    """Of D_retain in Eq. 3; None: every picture weighs the same."""
    return _weights(settings.zeta_related, settings.zeta_unrelated)


def _weights(related: float | None, unrelated: float | None) -> KindWeights | None:
    return None if related is None or unrelated is None else KindWeights(related, unrelated)


def weighted(errors: Tensor, related: int, weights: KindWeights | None) -> Tensor:
    """The mean of ``errors`` (B,), or the weighted sum of the mean over the first ``related`` and over the others."""
    if weights is None:
        return errors.mean()
    return weights.related * errors[:related].mean() + weights.unrelated * errors[related:].mean()


def retain_loss(model: TextToImageModel, kept: RetainBatch, weights: KindWeights | None) -> Loss:
    """L_DM(theta; D_retain), its two kinds weighted."""
    return lambda theta: weighted(squared_errors(model, theta, kept.batch), kept.related, weights)


@dataclass(frozen=True)
class LossesAtTheta:
    """The terms that are evaluated at theta: scalars, differentiable."""

    forget: Tensor
    """L_forget, zero where the method has none."""
    retain: Tensor
    """L_retain."""
    direct: Tensor
    """L_DM(theta; D_retain) of Eq. 3, zero where it is not wanted."""


def losses_at_theta(
    model: TextToImageModel,
    theta: Params,
    batches: OuterDraw,
    *,
    direct: bool,
    retain: KindWeights | None = None,
    zeta: KindWeights | None = None,
    teacher: Params | None = None,
    at_teacher: bool = False,
) -> LossesAtTheta:
    """L_forget, L_retain and, with ``direct``, the direct term of Eq. 3, from one forward pass.

    ``retain`` and ``zeta`` are the weights inside L_retain and inside the direct term. With a ``teacher``, L_retain is
    the distance to its answer on the retained pictures in place of L_DM; ``at_teacher`` says that theta is the teacher.
    """
    separate = direct and batches.direct is not batches.retain
    kept = joined(batches.retain.batch, batches.direct.batch) if separate else batches.retain.batch
    kept_t = model.schedule.add_noise(kept.x_0, kept.eps, kept.t)
    x_t, t, cond = kept_t, kept.t, kept.cond
    forget, count = None, len(batches.retain.batch.t)
    if batches.forget is not None:
        x_t, t = torch.cat([batches.forget.x_t, kept_t]), torch.cat([batches.forget.t, kept.t])
        cond = Conditioning.cat([batches.forget.cond, kept.cond])
    output = model.predict(theta, x_t, t, cond)
    if batches.forget is not None:
        # Detached: a method may have computed its target from theta; it is a constant of L_forget.
        forget = _errors(output[: len(batches.forget.t)], batches.forget.target.detach()).mean()
        output = output[len(batches.forget.t) :]
    noise = model.schedule.target(kept.x_0, kept.eps, kept.t)
    target = noise[:count]
    if teacher is not None and at_teacher:
        # A pass of its own, with other rows, would differ by rounding, of which AdamW makes whole steps.
        target = output[:count].detach()
    elif teacher is not None:
        with torch.no_grad():
            target = teachers_answer(model.predict, teacher, kept_t[:count], kept.t[:count], batches.retain.batch.cond)
    l_retain = weighted(_errors(output[:count], target), batches.retain.related, retain)
    l_direct = l_retain.new_zeros(())
    if direct:
        size = len(batches.direct.batch.t)
        l_direct = weighted(_errors(output[-size:], noise[-size:]), batches.direct.related, zeta)
    return LossesAtTheta(forget=l_retain.new_zeros(()) if forget is None else forget, retain=l_retain, direct=l_direct)


def _errors(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, (B,)."""
    return (output - target).square().mean(dim=(1, 2, 3))


def outer_loss(
    model: TextToImageModel, outer: Batch, kept: RetainBatch, zeta: float, weights: KindWeights | None = None
) -> Loss:
    """The part of Eq. 3 at theta_M: -L_DM(theta_M; D_FT) - zeta L_DM(theta_M; D_retain)."""
    both, count = joined(outer, kept.batch), len(outer.t)

    def loss(theta: Params) -> Tensor:
        errors = squared_errors(model, theta, both)
        return -errors[:count].mean() - zeta * weighted(errors[count:], kept.related, weights)

    return loss


def meta_problem(
    model: TextToImageModel,
    parts: Sequence[OuterDraw],
    attacker: Attacker,
    settings: EraseSettings,
    processes: Processes = ALONE,
) -> MetaProblem:
    """Eq. 3 after the simulated finetuning of ``attacker``, on the micro-batches; its direct term is elsewhere."""
    names = model.parameter_names
    inner = InnerLoop(
        learning_rate=attacker.learning_rate,
        adapted=subset(names, settings.inner_subset, setting="inner_subset"),
        optimizer=_rule(attacker, settings),
        store=STORES[settings.inner_store],
    )
    weights = zeta_weights(settings)
    return MetaProblem(
        inner_losses=tuple(processes.shared(denoising_loss_of(model, batch)) for batch in parts[0].inner),
        inner=inner,
        outer=processes.shared(
            mean_of([outer_loss(model, part.outer, part.meta_retain, settings.zeta, weights) for part in parts])
        ),
        direct=None,
    )


def _rule(attacker: Attacker, settings: EraseSettings) -> UpdateRule:
    rule = update_rule(
        attacker.optimizer,
        momentum=settings.inner_momentum,
        weight_decay=settings.inner_weight_decay,
        eps_root=settings.inner_eps_root,
    )
    limit = settings.inner_max_gradient_norm
    return rule if limit is None else Clipped(rule, limit)
