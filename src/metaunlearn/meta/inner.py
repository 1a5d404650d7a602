"""The simulated attack: M finetuning steps of the inner loop, and how a gradient travels back through one of them.

theta: all parameters of the denoiser. P: the projection on the parameters that the attacker tunes. tau: its learning
rate. L_m: the finetuning loss of step m with its batch, noise and timesteps fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.parameters import Loss, Params, add, value_and_gradient


@dataclass
class Trajectory:
    """Where the inner loop went; everything in it is detached. Parameters that P freezes are shared, not copied."""

    thetas: list[Params]
    """theta_0, ..., theta_M; only theta_M when the path was not kept."""
    losses: Tensor
    """(M,) L_m(theta_{m-1}), m = 1..M."""
    gradients: list[Params] = field(default_factory=list)
    """grad L_m(theta_{m-1}) over all parameters, m = 1..M; empty unless asked for."""


@dataclass(frozen=True, kw_only=True)
class InnerLoop:
    """Gradient descent theta_m = theta_{m-1} - tau P grad L_m(theta_{m-1}) (Eq. 2; Algorithm 1, lines 13-15)."""

    learning_rate: float
    """tau, at least 0."""
    adapted: frozenset[str] | None = None
    """Names of the parameters that the attacker tunes; None: all of them, and P is the identity."""

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
        self, theta: Params, losses: Sequence[Loss], *, keep_path: bool = True, keep_gradients: bool = False
    ) -> Trajectory:
        """Take one step on each of ``losses``, starting at theta_0 = ``theta``."""
        self._check_names(theta)
        current = {name: p.detach() for name, p in theta.items()}
        path: list[Params] = [current]
        gradients: list[Params] = []
        values: list[Tensor] = []
        for loss in losses:
            # A gradient that is kept is wanted whole; the step itself needs only what the attacker tunes.
            value, gradient = value_and_gradient(loss, current, None if keep_gradients else self.adapted)
            current = shift(current, self.project(gradient), -self.learning_rate)
            values.append(value)
            path = [*path, current] if keep_path else [current]
            gradients += [gradient] if keep_gradients else []
            del gradient  # else it would stay alive while the next step computes its own
        return Trajectory(thetas=path, losses=torch.stack(values), gradients=gradients)

    def pull_back(self, v: Params, hessian_product: Callable[[Params], Params]) -> Params:
        """v_{m-1} = (I - tau P H_m)^T v_m = v_m - tau H_m P v_m, the transpose of one step's Jacobian.

        ``hessian_product`` gets P v_m, without the zeros, and answers with H_m P v_m over *all* parameters: what the
        attacker does not tune still changes what the attacker's gradient is.
        """
        if self.learning_rate == 0:
            return v
        return add(v, hessian_product(self.project(v)), -self.learning_rate)

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
