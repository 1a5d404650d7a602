"""The simulated attack: M finetuning steps of the inner loop, and how a gradient travels back through one of them.

theta: all parameters of the denoiser. P: the projection on the parameters that the attacker tunes. tau: its learning
rate. delta: its decoupled weight decay. L_m: the finetuning loss of step m with its batch, noise and timesteps fixed.
q_m, s_m, d_m, w_m: what the optimiser makes of a gradient, and of an adjoint on the way back (``meta/optimizers.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.meta.optimizers import SGD, State, UpdateRule
from metaunlearn.meta.store import Sets, Stack, Store, on_device
from metaunlearn.parameters import Loss, Params, absorb, add, own_of, scale, subset, value_and_gradient

AS_METHOD = "method"
"""The ``inner_subset`` of an attacker who tunes what the method trains."""


def attacked(names: Iterable[str], which: str, trained: Collection[str]) -> frozenset[str]:
    """What P keeps: the subset ``which`` (``inner_subset``) of the parameters ``names``, or what is ``trained``."""
    return frozenset(trained) if which == AS_METHOD else subset(names, which, setting="inner_subset")


@dataclass
class Trajectory:
    """Where the inner loop went; everything in it is detached. Parameters that P freezes are shared, not copied."""

    thetas: Stack
    """theta_0, ..., theta_M; only theta_M when the path was not kept."""
    losses: Tensor
    """(M,) L_m(theta_{m-1}), m = 1..M."""
    gradients: Stack
    """grad L_m(theta_{m-1}), m = 1..M, over what the attacker tunes; empty if the optimiser's way back needs none."""


class Adjoint(NamedTuple):
    """The adjoints of theta_m and, in units of -tau, of the optimiser's state s_m."""

    v: Params
    """Over all parameters."""
    w: State
    """Over those that the attacker tunes."""


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """theta_m = (1 - tau delta P) theta_{m-1} - tau q_m: finetuning from a fresh optimiser (Algorithm 1, lines 13-15).

    With SGD, the default, q_m = P grad L_m(theta_{m-1}) and delta = 0 (Eq. 2).
    """

    learning_rate: float
    """tau, at least 0."""
    adapted: frozenset[str] | None = None
    """Names of the parameters that the attacker tunes; None: all of them, and P is the identity."""
    optimizer: UpdateRule = field(default_factory=SGD)
    """What makes q_m of the gradients, and says what delta is."""
    store: Store = on_device
    """Where the path and the gradients are kept for the way back."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise UserError(
                "The inner learning rate (inner_learning_rate, --set inner_learning_rate=...) must be a finite number, "
                f"at least 0; got {self.learning_rate!r}."
            )
        if self.adapted is not None and not self.adapted:
            raise UserError(
                "The attacker tunes no parameter (adapted): give the names it tunes, or None for all of them."
            )

    def run(
        self,
        theta: Params,
        losses: Sequence[Loss],
        *,
        keep_path: bool = True,
        visit: Callable[[int, Params], object] | None = None,
    ) -> Trajectory:
        """Take one step on each of ``losses``, starting at theta_0 = ``theta``.

        ``visit`` gets (m, theta_m) of every step but the last, whose theta_M is handed back.
        """
        self._check_names(theta)
        current = {name: p.detach() for name, p in theta.items()}
        state = self.optimizer.start(self.project(current))
        keep_gradients = keep_path and self.optimizer.needs_gradients
        path, gradients = self.store(current if keep_path else {}), self.store({})
        path.append(current)
        values: list[Tensor] = []
        for m, loss in enumerate(losses, start=1):
            value, gradient = value_and_gradient(loss, current, self.adapted)
            tuned, state = self.optimizer.step(self.project(current), state, gradient, m, self.learning_rate)
            current = current | tuned
            values.append(value)
            if not keep_path:
                path.pop()
            path.append(current)
            if keep_gradients:
                gradients.append(gradient)
            del gradient, tuned  # else they would stay alive while the next step computes its own
            if visit is not None and m < len(losses):
                visit(m, current)
        return Trajectory(thetas=path, losses=torch.stack(values), gradients=gradients)

    def pull_back(self, v: Params, w: State, gradients: Sets, hessian_product: Callable[[Params], Params]) -> Adjoint:
        """v_{m-1} = (1 - tau delta P) v_m - tau H_m d_m and w_{m-1}: the transpose of step m's Jacobian.

        ``gradients`` are g_1 .. g_m, for the optimisers that need them. ``hessian_product`` gets d_m (P v_m with SGD),
        without the zeros, and answers with H_m d_m over *all* parameters: what the attacker does not tune still changes
        what the attacker's gradient is.
        """
        if self.learning_rate == 0:
            return Adjoint(v, w)
        direction, w = self.optimizer.pull_back(self.project(v), w, gradients)
        return Adjoint(absorb(self.decay(v), hessian_product(direction), -self.learning_rate), w)

    def decay(self, v: Params) -> Params:
        """(1 - tau delta P) v."""
        shrink = self.learning_rate * self.optimizer.weight_decay
        return v | scale(self.project(v), 1 - shrink) if shrink else v

    def project(self, v: Params) -> Params:
        """P v, without the zeros."""
        return v if self.adapted is None else {name: p for name, p in v.items() if name in self.adapted}

    def _check_names(self, theta: Params) -> None:
        unknown = sorted((self.adapted or frozenset()) - theta.keys())
        if unknown:
            raise UserError(
                f"The attacker tunes {len(unknown)} parameters (adapted) that the model does not have, such as "
                f"{unknown[0]!r}; take the names from the model, for example with parameters.subset()."
            )


def shift(theta: Params, direction: Params, step: float) -> Params:
    """theta + step x direction, where ``direction`` may name only some parameters; the others are shared."""
    return theta | add({name: theta[name] for name in direction}, direction, step)


def move(theta: Params, direction: Params, step: float) -> None:
    """The same in place."""
    torch._foreach_add_(own_of(theta, names=direction), own_of(direction), alpha=step)
