"""What an outer step can say of itself: Eq. 4's terms, the losses behind Eq. 3, and how far off first order is.

Nothing here draws a random number or changes a tensor: a run's weights are the same bits with diagnostics and without.
A diagnosis costs two gradients on a batch and, with the meta objective, one forward pass; an exact meta-gradient beside
a first-order run costs what it costs.

a: grad L_DM(theta; D_FT). b: grad L_DM(theta; D_retain), on the batches of this step.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from metaunlearn.config import EraseSettings
from metaunlearn.diffusion import denoising_loss_of
from metaunlearn.meta.batches import OuterDraw
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradient,
    MetaGradientMode,
    MetaProblem,
)
from metaunlearn.meta.objective import loss_on_retained, zeta_weights
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, add, dot, mean_of, norm, scale, subset, value_and_gradient
from metaunlearn.processes import ALONE, Processes

EXACT: dict[str, MetaGradientMode] = {
    "gradient-difference": GradientDifference(),
    "double-backward": DoubleBackward(),
}
"""What ``diagnostics_exact`` may be named, besides ``none``."""


def diagnose(
    model: TextToImageModel,
    settings: EraseSettings,
    theta: Params,
    parts: Sequence[OuterDraw],
    trained: Collection[str],
    *,
    mode: MetaGradientMode | None = None,
    problem: MetaProblem | None = None,
    found: MetaGradient | None = None,
    direct: Params | None = None,
    start: Params | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """A record for ``log.jsonl``: JSON values.

    With the meta objective ``found`` is the meta-gradient that ``mode`` made of ``problem``, without its direct term;
    with a margin ``direct`` is that term's own gradient, zeta included, over what is trained. ``start`` is where the
    simulated attacker started, theta unless it went on from an earlier step.
    """
    watched = subset(theta, settings.diagnostics_subset, setting="diagnostics_subset")
    weights = zeta_weights(settings)
    ft = processes.shared(mean_of([denoising_loss_of(model, part.outer) for part in parts]))
    retain = processes.shared(mean_of([loss_on_retained(model, part.direct, weights) for part in parts]))
    after = processes.shared(mean_of([loss_on_retained(model, part.meta_retain, weights) for part in parts]))
    loss_ft, a = value_and_gradient(ft, theta, watched)
    loss_retain, b = value_and_gradient(retain, theta, watched | set(trained))
    record: dict[str, Any] = {
        "loss_ft": loss_ft.item(),
        "loss_retain": loss_retain.item(),
        **equation_4(a, {name: b[name] for name in a}),
    }
    if mode is None or problem is None or found is None:
        return record
    with torch.no_grad():
        record |= {
            "loss_ft_at_theta_m": ft(found.theta_final).item(),
            "loss_retain_at_theta_m": after(found.theta_final).item(),
        }
    pair = first_order_and_exact(theta if start is None else start, mode, problem, found, settings)
    if pair is not None:
        if direct is None:
            direct = scale({name: b[name] for name in trained}, settings.zeta if settings.direct_term else 0.0)
        first, exact = (add({name: v[name] for name in trained}, direct) for v in pair)
        record["first_order"] = compared(first, exact)
    return record


def equation_4(a: Params, b: Params) -> dict[str, float]:
    """Eq. 4's two terms without their factors tau and tau zeta, and normalised as in Figure 6.

    ``orthogonal``: <a, b>; below 0 finetuning on the concept harms what is retained. ``cosine``: the same over
    ||a|| ||b||. ``ft_gradient_squared``: ||a||^2, how fast finetuning relearns; ``retain_gradient_squared``: ||b||^2.
    """
    product, size_a, size_b = dot(a, b), norm(a), norm(b)
    return {
        "orthogonal": product,
        "cosine": product / (size_a * size_b) if size_a * size_b else 0.0,
        "ft_gradient_squared": size_a**2,
        "retain_gradient_squared": size_b**2,
    }


def first_order_and_exact(
    theta: Params, mode: MetaGradientMode, problem: MetaProblem, found: MetaGradient, settings: EraseSettings
) -> tuple[Params, Params] | None:
    """Both meta-gradients at ``theta``, where the attacker started; None where the exact one was not asked for.

    An exact mode passes the first-order one on its way; the other way round a second meta-gradient is needed.
    """
    if found.first_order is not None:
        return found.first_order, found.gradient
    if isinstance(mode, FirstOrder) and settings.diagnostics_exact != "none":
        return found.gradient, EXACT[settings.diagnostics_exact](problem, theta).gradient
    return None


def compared(first: Params, exact: Params) -> dict[str, float]:
    """``cosine`` of the angle between both, and ``relative_error`` ||first - exact|| / ||exact||."""
    sizes = norm(first) * norm(exact)
    return {
        "cosine": dot(first, exact) / sizes if sizes else 0.0,
        "relative_error": norm(add(first, exact, -1.0)) / (norm(exact) or 1.0),
    }
