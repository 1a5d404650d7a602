"""What an outer step asks of the denoiser: which passes, on how many pictures, how often.

An outer step of Algorithm 1 takes, for each of its micro-batches of B pictures, one gradient at theta on the pictures
of L_forget and L_retain (and of the direct term of Eq. 3, where that has pictures or noise of its own), and with the
meta objective M gradients for the simulated attacker, one on 2 B pictures at theta_M (or at each theta_m, along the
path), and M Hessian-vector products. Of a mixture of attackers, the mean. All but the attacker's batches come once for
each micro-batch. With ``zeta_margin`` the direct term is a gradient of its own, and two passes without a gradient say
what counts. A distilled L_retain asks MODEL, and SDD the student and now and then its teacher, without a gradient.

Closed-form edits themselves are not counted: they take seconds. Nor are diagnoses, and what ``auto`` tries at its
start.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Literal, NamedTuple

from metaunlearn.config import EraseSettings
from metaunlearn.erasure.esd import Esd
from metaunlearn.erasure.interface import DefendedMethod, Method, OptimisedMethod
from metaunlearn.erasure.sdd import Sdd

Kind = Literal["trained", "tuned", "all", "product", "forward", "teacher"]
"""A gradient over what the method trains, over what the attacker tunes, or over all; a Hessian-vector product by double
backward; a pass without a gradient, with theta or with a teacher."""

GRADIENTS: dict[str, int] = {"trained": 1, "tuned": 1, "all": 1, "product": 7, "forward": 0, "teacher": 0}
"""Gradients' worth of time in each. One product by double backward: 5 at M = 1, 10 at M = 5 were timed."""


class Pass(NamedTuple):
    """One call of the denoiser, and its way back where it has one."""

    kind: Kind
    pictures: int
    """How many go through it at once."""
    first_order: bool = False
    """Whether it may be in half precision (``precision``)."""


Passes = dict[Pass, float]
"""How often each comes in a step."""


def outer_step(method: Method, settings: EraseSettings, *, meta: bool, paths: int) -> Passes:
    """The passes of one outer step; a closed-form method has steps with the meta objective only.

    ``paths`` of a bank are sampled at once.
    """
    found: Passes = defaultdict(float)
    if isinstance(method, DefendedMethod):
        _defended(found, method, settings)
    else:
        _objectives(found, settings, meta=meta, forget=isinstance(method, OptimisedMethod))
    if found:
        _teachers(found, method, settings, paths)
    return dict(found)


def gradients_in(passes: Passes, batch_size: int) -> int:
    """Gradients on ``batch_size`` pictures that ``passes`` amount to."""
    return round(sum(GRADIENTS[one.kind] * one.pictures * count for one, count in passes.items()) / batch_size)


def direct_needs_a_batch(settings: EraseSettings) -> bool:
    """Whether the direct term of Eq. 3 has pictures, noise or timesteps that L_retain has not, or waits for theta_M."""
    own = settings.meta_retain != "both" or not settings.common_noise or settings.zeta_margin is not None
    return settings.direct_term and own


def at_theta(settings: EraseSettings, *, meta: bool, forget: bool) -> Pass:
    """The gradient that L_forget, L_retain and the direct term share."""
    joined = meta and direct_needs_a_batch(settings) and settings.zeta_margin is None
    return Pass("trained", settings.batch_size * (1 + forget + joined), first_order=True)


def _objectives(found: Passes, s: EraseSettings, *, meta: bool, forget: bool) -> None:
    if meta or forget:
        _flatness(found, s, forget=forget)
    if not meta:
        if forget:
            found[at_theta(s, meta=False, forget=True)] += s.accumulation
        return
    inner_steps = statistics.mean(attacker.steps for attacker in s.simulated)
    ends = inner_steps if s.meta_loss == "path" else 1
    first_order = s.meta_gradient == "first-order"
    found[at_theta(s, meta=True, forget=forget)] += s.accumulation
    found[Pass("tuned", s.batch_size, first_order)] += inner_steps
    found[Pass("all", 2 * s.batch_size, first_order)] += ends * s.accumulation
    if s.meta_gradient == "double-backward":
        found[Pass("product", s.batch_size)] += inner_steps
    elif not first_order:  # One gradient on either side.
        found[Pass("all", s.batch_size)] += 2 * inner_steps
    if s.zeta_margin is not None:  # Losses at theta; and which pictures count, for the direct term.
        found[Pass("forward", s.batch_size, first_order)] += s.accumulation * (1 + s.direct_term * ends)
        if s.direct_term:
            found[Pass("trained", s.batch_size, first_order=True)] += s.accumulation


def _flatness(found: Passes, s: EraseSettings, *, forget: bool) -> None:
    """Each penalty takes the gradient that gives its direction; the one then a product along it, the other another."""
    if s.lipschitz_weight:
        found[Pass("all", s.batch_size)] += 3 * s.accumulation
    if s.sharpness_radius and forget:
        found[Pass("all", s.batch_size, first_order=True)] += 2 * s.accumulation


def _defended(found: Passes, method: DefendedMethod, s: EraseSettings) -> None:
    """L_retain, and what the method says."""
    found[Pass("trained", s.batch_size, first_order=True)] += s.accumulation
    first_order = s.meta_gradient == "first-order" or "meta_gradient" in method.unread
    found[Pass("all", s.batch_size, first_order)] += round(method.gradients(s))


def _teachers(found: Passes, method: Method, s: EraseSettings, paths: int) -> None:
    if s.retain_loss == "distillation":
        found[Pass("teacher", s.batch_size)] += s.accumulation
    refresh = None
    if isinstance(method, Sdd):  # What the student says for nothing; then the teacher's paths.
        found[Pass("forward", s.batch_size * s.accumulation)] += 1
        refresh = method.bank_refresh
    elif isinstance(method, Esd) and method.latents == "edited":
        found[Pass("teacher", 2 * s.batch_size * s.accumulation)] += 1
        refresh = method.bank_refresh
    if refresh is not None:
        size = min(paths, s.bank_trajectories)
        found[Pass("forward", 2 * size)] += s.bank_trajectories / size * s.bank_steps / refresh
