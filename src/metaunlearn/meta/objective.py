"""Eq. 1 and Eq. 3 of the paper on concrete batches: what one outer step of Algorithm 1 minimises.

Two kinds of gradient make up an outer step. What is evaluated at theta itself takes one forward pass: L_forget,
lambda L_retain, and the direct term zeta L_DM(theta; D_retain) of Eq. 3. What lies at theta_M, after the simulated
finetuning, is a :class:`~metaunlearn.meta.hypergradient.MetaProblem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.latents import LatentSet
from metaunlearn.diffusion import Batch, denoising_loss_of, joined, squared_errors
from metaunlearn.erasure.interface import ForgetBatch
from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.optimizers import update_rule
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Loss, Params, subset


@dataclass(frozen=True)
class ErasureData:
    """The pictures that an outer step draws from."""

    forget: LatentSet
    """D_FT: pictures of the concept, what an attacker would finetune on."""
    related: LatentSet
    """Retained pictures that are related to the concept."""
    unrelated: LatentSet
    """Retained pictures that are not."""


@dataclass(frozen=True)
class OuterDraw:
    """The batches of one outer step."""

    forget: ForgetBatch | None
    """L_forget; None in the second stage of a closed-form method."""
    retain: Batch
    """Half related, half unrelated: L_retain of Eq. 1."""
    meta_retain: Batch
    """D_retain of Eq. 3; the same noise and timesteps at theta and at theta_M (common random numbers)."""
    inner: tuple[Batch, ...]
    """D_FT for the M simulated finetuning steps."""
    outer: Batch
    """D_FT at theta_M."""


def draw_attacker(attackers: Sequence[Attacker], generator: torch.Generator) -> Attacker:
    """One of ``attackers``, each as likely as the others; an only one leaves ``generator`` as it is."""
    if len(attackers) == 1:
        return attackers[0]
    return attackers[int(torch.randint(len(attackers), (), generator=generator))]


def draw(
    data: ErasureData,
    settings: EraseSettings,
    inner_steps: int,
    generator: torch.Generator,
    forget: ForgetBatch | None,
) -> OuterDraw:
    """Fresh batches for one outer step against an attacker of ``inner_steps`` steps; ``forget`` is its method's."""
    size, stratified = settings.batch_size, settings.stratified
    half = size // 2
    retain = joined(
        data.related.draw(half, generator, stratified=stratified),
        data.unrelated.draw(size - half, generator, stratified=stratified),
    )
    if settings.meta_retain == "both":
        meta_retain = retain
    else:
        chosen = data.related if settings.meta_retain == "related" else data.unrelated
        meta_retain = chosen.draw(size, generator, stratified=stratified)
    inner = tuple(data.forget.draw(size, generator, stratified=stratified) for _ in range(inner_steps))
    outer = data.forget.draw(size, generator, stratified=stratified)
    return OuterDraw(forget=forget, retain=retain, meta_retain=meta_retain, inner=inner, outer=outer)


@dataclass(frozen=True)
class LossesAtTheta:
    """The terms that are evaluated at theta: scalars, differentiable."""

    forget: Tensor
    """L_forget, zero where the method has none."""
    retain: Tensor
    direct: Tensor
    """L_DM(theta; D_retain) of Eq. 3, zero for a plain run."""


def losses_at_theta(model: TextToImageModel, theta: Params, batches: OuterDraw, *, meta: bool) -> LossesAtTheta:
    """L_forget, L_retain and the direct term of Eq. 3, from one forward pass."""
    separate = meta and batches.meta_retain is not batches.retain
    kept = joined(batches.retain, batches.meta_retain) if separate else batches.retain
    parts = [
        ForgetBatch(
            x_t=model.schedule.add_noise(kept.x_0, kept.eps, kept.t),
            t=kept.t,
            cond=kept.cond,
            target=model.schedule.target(kept.x_0, kept.eps, kept.t),
        )
    ]
    if batches.forget is not None:
        parts.insert(0, batches.forget)
    x_t, t = torch.cat([part.x_t for part in parts]), torch.cat([part.t for part in parts])
    cond = Conditioning.cat([part.cond for part in parts])
    # Detached: a method may have computed its target from theta; it is a constant of L_forget.
    targets = torch.cat([part.target for part in parts]).detach()
    errors = (model.predict(theta, x_t, t, cond) - targets).square().mean(dim=(1, 2, 3))
    count = 0 if batches.forget is None else len(batches.forget.t)
    forget = errors[:count].mean() if count else errors.new_zeros(())
    retain = errors[count : count + len(batches.retain.t)].mean()
    direct = errors[-len(batches.meta_retain.t) :].mean() if meta else retain.new_zeros(())
    return LossesAtTheta(forget=forget, retain=retain, direct=direct)


def outer_loss(model: TextToImageModel, batches: OuterDraw, zeta: float) -> Loss:
    """The part of Eq. 3 at theta_M: -L_DM(theta_M; D_FT) - zeta L_DM(theta_M; D_retain)."""
    both, count = joined(batches.outer, batches.meta_retain), len(batches.outer.t)

    def loss(theta: Params) -> Tensor:
        errors = squared_errors(model, theta, both)
        return -errors[:count].mean() - zeta * errors[count:].mean()

    return loss


def meta_problem(
    model: TextToImageModel, batches: OuterDraw, attacker: Attacker, settings: EraseSettings
) -> MetaProblem:
    """Eq. 3 after the simulated finetuning of ``attacker``; its direct term is elsewhere."""
    names = model.parameter_names
    inner = InnerLoop(
        learning_rate=attacker.learning_rate,
        adapted=subset(names, settings.inner_subset, setting="inner_subset"),
        optimizer=update_rule(
            attacker.optimizer,
            momentum=settings.inner_momentum,
            weight_decay=settings.inner_weight_decay,
            eps_root=settings.inner_eps_root,
        ),
    )
    return MetaProblem(
        inner_losses=tuple(denoising_loss_of(model, batch) for batch in batches.inner),
        inner=inner,
        outer=outer_loss(model, batches, settings.zeta),
        direct=None,
    )
