"""Eq. 1 and Eq. 3 of the paper on concrete batches: what one outer step of Algorithm 1 minimises.

Two kinds of gradient make up an outer step. What is evaluated at theta itself takes one forward pass: L_forget, lambda
L_retain, and the direct term zeta L_DM(theta; D_retain) of Eq. 3; with ``zeta_margin`` that term has a pass of its own,
after theta_M has said which pictures count. What lies at theta_M, after the simulated finetuning, is a
:class:`~metaunlearn.meta.hypergradient.MetaProblem`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.diffusion import Batch, denoising_loss_of, error_of_each, joined, squared_errors
from metaunlearn.erasure.interface import NO_FORGET_LOSS, ForgetBatch
from metaunlearn.errors import UserError
from metaunlearn.meta.batches import OuterDraw, RetainBatch
from metaunlearn.meta.clipping import Clipped
from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.inner import InnerLoop, attacked
from metaunlearn.meta.margin import Margin, active_pictures, margins
from metaunlearn.meta.optimizers import UpdateRule, update_rule
from metaunlearn.meta.store import STORES
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.precision import teachers_answer
from metaunlearn.parameters import Loss, Params, mean_of
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


def _l_retain_of(errors: Tensor, kept: RetainBatch, weights: KindWeights | None) -> Tensor:
    """L_retain of the pictures' ``errors`` (B,): each counts with its own weight, then with its kind's."""
    return weighted(errors if kept.weights is None else kept.weights * errors, kept.related, weights)


def loss_on_retained(
    model: TextToImageModel, kept: RetainBatch, weights: KindWeights | None, active: Tensor | None = None
) -> Loss:
    """L_DM(theta; D_retain), its two kinds weighted; with ``active`` (B,) each picture counts as far as it says."""

    def loss(theta: Params) -> Tensor:
        errors = squared_errors(model, theta, kept.batch)
        return weighted(errors if active is None else active * errors, kept.related, weights)

    return loss


def direct_loss(
    model: TextToImageModel, parts: Sequence[OuterDraw], weights: KindWeights | None, active: Tensor
) -> Loss:
    """The direct term of Eq. 3, L_DM(theta; D_retain), of the pictures that are ``active``, (K, B)."""
    return mean_of(
        [loss_on_retained(model, part.direct, weights, mask) for part, mask in zip(parts, active, strict=True)]
    )


def l_retain(model: TextToImageModel, kept: RetainBatch, weights: KindWeights | None, teacher: Params | None) -> Loss:
    """L_retain of Eq. 1 by itself; with a ``teacher``, the distance to its answer."""
    x_t = model.schedule.add_noise(kept.batch.x_0, kept.batch.eps, kept.batch.t)

    def loss(theta: Params) -> Tensor:
        output = model.predict(theta, x_t, kept.batch.t, kept.batch.cond)
        target = _retain_target(model, kept.batch, x_t, teacher)
        return _l_retain_of(error_of_each(output, target), kept, weights)

    return loss


def _retain_target(model: TextToImageModel, kept: Batch, x_t: Tensor, teacher: Params | None) -> Tensor:
    """What L_retain holds the answers at ``x_t`` to: what the network was trained to say, or what ``teacher`` says."""
    if teacher is None:
        return model.schedule.target(kept.x_0, kept.eps, kept.t)
    with torch.no_grad():
        return teachers_answer(model.predict, teacher, x_t, kept.t, kept.cond)


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
        forget = error_of_each(output[: len(batches.forget.t)], batches.forget.target.detach()).mean()
        output = output[len(batches.forget.t) :]
    target = _retain_target(model, batches.retain.batch, kept_t[:count], None if at_teacher else teacher)
    if teacher is not None and at_teacher:
        # A pass of its own, with other rows, would differ by rounding, of which AdamW makes whole steps.
        target = output[:count].detach()
    loss_retain = _l_retain_of(error_of_each(output[:count], target), batches.retain, retain)
    nothing = loss_retain.new_zeros(())
    loss_direct = nothing
    if direct:
        size = len(batches.direct.batch.t)
        noise = model.schedule.target(kept.x_0, kept.eps, kept.t)
        loss_direct = weighted(error_of_each(output[-size:], noise[-size:]), batches.direct.related, zeta)
    return LossesAtTheta(forget=nothing if forget is None else forget, retain=loss_retain, direct=loss_direct)


def outer_loss(
    model: TextToImageModel,
    concept: Batch | ForgetBatch,
    kept: RetainBatch,
    zeta: float,
    weights: KindWeights | None = None,
    margin: Margin | None = None,
) -> Loss:
    """The part of Eq. 3 at theta_M: -L_DM(theta_M; D_FT) - zeta L_DM(theta_M; D_retain).

    On a ``ForgetBatch`` the first term is + L_forget(theta_M) instead; with a ``margin`` the second one is zeta times
    how far the retained pictures fall short of it.
    """
    asked, sign = (concept, 1.0) if isinstance(concept, ForgetBatch) else (_regression(model, concept), -1.0)
    both, count = _followed_by(asked, _regression(model, kept.batch)), len(concept.t)

    def loss(theta: Params) -> Tensor:
        errors = error_of_each(model.predict(theta, both.x_t, both.t, both.cond), both.target)
        of_concept, of_kept = sign * errors[:count].mean(), errors[count:]
        if margin is None:
            return of_concept - zeta * weighted(of_kept, kept.related, weights)
        return of_concept + zeta * weighted(margin.shortfall(of_kept), kept.related, weights)

    return loss


def forget_loss(model: TextToImageModel, batch: ForgetBatch) -> Loss:
    """L_forget by itself."""
    target = batch.target.detach()  # A method may have computed it from theta; it is a constant.
    return lambda theta: error_of_each(model.predict(theta, batch.x_t, batch.t, batch.cond), target).mean()


def _regression(model: TextToImageModel, batch: Batch) -> ForgetBatch:
    """L_DM on ``batch`` as the regression that it is, like L_forget."""
    schedule = model.schedule
    x_t = schedule.add_noise(batch.x_0, batch.eps, batch.t)
    return ForgetBatch(x_t=x_t, t=batch.t, cond=batch.cond, target=schedule.target(batch.x_0, batch.eps, batch.t))


def _followed_by(a: ForgetBatch, b: ForgetBatch) -> ForgetBatch:
    # Detached: a method may have computed its target from theta; it is a constant.
    return ForgetBatch(
        x_t=torch.cat([a.x_t, b.x_t]),
        t=torch.cat([a.t, b.t]),
        cond=Conditioning.cat([a.cond, b.cond]),
        target=torch.cat([a.target.detach(), b.target]),
    )


def after_the_attack(draw: OuterDraw, settings: EraseSettings) -> Batch | ForgetBatch:
    """What Eq. 3 asks of the concept at theta_M: L_DM on pictures of it, or the method's own L_forget."""
    if settings.post_attack_loss == "denoising":
        return draw.outer
    if draw.forget is None:
        raise UserError(NO_FORGET_LOSS)
    return draw.forget


def meta_problem(
    model: TextToImageModel,
    parts: Sequence[OuterDraw],
    attacker: Attacker,
    settings: EraseSettings,
    processes: Processes = ALONE,
    *,
    theta: Params,
    trained: Collection[str] = (),
) -> MetaProblem:
    """Eq. 3 after the simulated finetuning of ``attacker``, which starts at ``theta``, on the micro-batches.

    ``trained`` is what the method trains, for an attacker who tunes the same. The direct term is elsewhere.
    """
    weights, width = zeta_weights(settings), settings.zeta_margin
    hinges: Sequence[Margin | None] = [None] * len(parts)
    active = None
    if width is not None:
        found = hinges = margins(model, theta, parts, width)
        if settings.direct_term:
            active = partial(active_pictures, model, parts=parts, hinges=found)
    return MetaProblem(
        inner_losses=tuple(processes.shared(denoising_loss_of(model, batch)) for batch in parts[0].inner),
        inner=simulated_finetuning(model.parameter_names, attacker, settings, trained),
        outer=processes.shared(
            mean_of(
                [
                    outer_loss(model, after_the_attack(part, settings), part.meta_retain, settings.zeta, weights, hinge)
                    for part, hinge in zip(parts, hinges, strict=True)
                ]
            )
        ),
        along_path=settings.meta_loss == "path",
        active=active,
    )


def simulated_finetuning(
    names: Iterable[str], attacker: Attacker, settings: EraseSettings, trained: Collection[str] = ()
) -> InnerLoop:
    """How ``attacker`` steps, on which of the parameters ``names``; the method trains ``trained``."""
    return InnerLoop(
        learning_rate=attacker.learning_rate,
        adapted=attacked(names, settings.inner_subset, trained),
        optimizer=attackers_rule(attacker, settings),
        store=STORES[settings.inner_store],
    )


def attackers_rule(attacker: Attacker, settings: EraseSettings) -> UpdateRule:
    """The optimiser of ``attacker``, with the numbers that all simulated attackers share."""
    rule = update_rule(
        attacker.optimizer,
        momentum=settings.inner_momentum,
        weight_decay=settings.inner_weight_decay,
        eps_root=settings.inner_eps_root,
    )
    limit = settings.inner_max_gradient_norm
    return rule if limit is None else Clipped(rule, limit)
