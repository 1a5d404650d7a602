r"""The attacker's optimisers, and the exact way back through one step of each.

Step m takes theta_{m-1} and the optimiser's state s_{m-1} (s_0 = 0: each simulated attack starts afresh) to

    g_m      = P grad L_m(theta_{m-1})
    q_m, s_m = step(s_{m-1}, g_m)
    theta_m  = (1 - tau delta P) theta_{m-1} - tau q_m                     delta: decoupled weight decay

Read from the end, with v_m the adjoint of theta_m, -tau w_m that of s_m, and w_M = 0,

    d_m, w_{m-1} = (the Jacobian of step at s_{m-1}, g_m)^T (P v_m, w_m)    element by element
    v_{m-1}      = (1 - tau delta P) v_m - tau H_m d_m                     one Hessian-vector product

All that a gradient does to theta carries one factor -tau; it is taken out of w and of d, so that SGD's d is v itself,
and no adjoint is scaled before its Hessian product. The two halves of each optimiser are below; the sums with theta, v
and H_m are in ``meta/inner.py``.

Symbols: mu: momentum; beta1, beta2: decay rates of Adam's moments; delta: decoupled weight decay. All parameter
dictionaries here hold only what the attacker tunes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.meta.store import Sets
from metaunlearn.parameters import Params, add, laid_out_like, named, own_of, scale

Tensors = tuple[Tensor, ...]
"""One for each parameter, in the order of a dictionary's names."""

State = tuple[Params, ...]
"""s_m, or its adjoint w_m: one dictionary for each thing that the optimiser remembers."""


class Step(NamedTuple):
    """Where one step leads, over what the attacker tunes."""

    theta: Params
    """theta_m."""
    state: State
    """s_m."""


class StepAdjoint(NamedTuple):
    """What one step's transpose does; both in units of -tau."""

    direction: Params
    """d_m, the adjoint of g_m: what H_m is to be multiplied by."""
    state: State
    """w_{m-1}, the adjoint of s_{m-1}."""


class UpdateRule(Protocol):
    """An optimiser as a pair of pure functions."""

    @property
    def weight_decay(self) -> float:
        """delta, decoupled: 0 where there is none."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether ``pull_back`` looks at the gradients, so that all M must be kept."""
        ...

    def start(self, tuned: Params) -> State:
        """Zeros: s_0, and also w_M."""
        ...

    def step(self, theta: Params, state: State, gradient: Params, m: int, learning_rate: float) -> Step:
        """theta_m and s_m from theta_{m-1}, s_{m-1} and g_m, m = 1..M, all left as they were."""
        ...

    def pull_back(self, v: Params, w: State, gradients: Sets) -> StepAdjoint:
        """d_m and w_{m-1} from P v_m, w_m and, if it needs them, g_1 .. g_m."""
        ...


@dataclass(frozen=True, kw_only=True)
class SGD:
    """q_m = g_m (Eq. 2; Algorithm 1, lines 13-15)."""

    weight_decay = 0.0
    needs_gradients = False

    def start(self, tuned: Params) -> State:
        """SGD remembers nothing."""
        return ()

    def step(self, theta: Params, state: State, gradient: Params, m: int, learning_rate: float) -> Step:
        """q_m = g_m."""
        return Step(add(theta, gradient, -learning_rate), ())

    def pull_back(self, v: Params, w: State, gradients: Sets) -> StepAdjoint:
        """d_m = P v_m."""
        return StepAdjoint(v, ())


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """q_m = b_m = mu b_{m-1} + g_m: torch's SGD with momentum, without dampening or Nesterov."""

    momentum: float = 0.9
    """mu, from 0 to below 1."""

    weight_decay = 0.0
    needs_gradients = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UserError(
                "The inner momentum (momentum, --set inner_momentum=...) must be at least 0 and below 1; "
                f"got {self.momentum!r}."
            )

    def start(self, tuned: Params) -> State:
        """b_0 = 0."""
        return (_zeros(tuned),)

    def step(self, theta: Params, state: State, gradient: Params, m: int, learning_rate: float) -> Step:
        """q_m = b_m = mu b_{m-1} + g_m."""
        [b] = state
        b = add(gradient, b, self.momentum)
        return Step(add(theta, b, -learning_rate), (b,))

    def pull_back(self, v: Params, w: State, gradients: Sets) -> StepAdjoint:
        """d_m = P v_m + w_m,   w_{m-1} = mu d_m."""
        [w_b] = w
        direction = add(v, w_b)
        return StepAdjoint(direction, (scale(direction, self.momentum),))


EPS_ROOT = 1e-8
"""Adam's default ``eps_root``, at which float32 still resolves the way back (docs/numerics.md)."""


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam with bias correction, and with decoupled ``weight_decay`` AdamW; two moments, a and b, are its state.

    a_m = beta1 a_{m-1} + (1 - beta1) g_m,      b_m = beta2 b_{m-1} + (1 - beta2) g_m^2
    q_m = a^_m / (sqrt(b^_m + eps_root) + eps),   a^_m = a_m / (1 - beta1^m),   b^_m = b_m / (1 - beta2^m)

    ``eps_root`` is optax's and TorchOpt's. torch's Adam has 0, whose way back is 0/0 wherever a gradient is exactly 0,
    because sqrt has no derivative there. And q_1 = g / (|g| + eps) is nearly a sign: its slope eps / (|g| + eps)^2 is a
    spike of height 1 / eps = 1e8 and width eps around g = 0, far below what float32 knows of g. With eps_root it has
    height 1 / sqrt(eps_root) and width sqrt(eps_root), 1e4 and 1e-4 by default. The price is paid in the forward pass:
    parameters whose gradients are smaller than sqrt(eps_root) move less than tau a step.
    """

    weight_decay: float = 0.0
    """delta, decoupled, at least 0."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_root: float = EPS_ROOT
    """At least 0; 0 is torch's Adam, of use forwards and to ``FirstOrder`` only."""

    needs_gradients = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                "The inner weight decay (weight_decay, --set inner_weight_decay=...) must be a finite number, at "
                f"least 0; got {self.weight_decay!r}."
            )
        if not (math.isfinite(self.eps_root) and self.eps_root >= 0):
            raise UserError(
                "eps_root of the inner Adam (eps_root, --set inner_eps_root=...) must be a finite number, at least 0; "
                f"got {self.eps_root!r}."
            )

    def start(self, tuned: Params) -> State:
        """a_0 = b_0 = 0."""
        return _zeros(tuned), _zeros(tuned)

    def step(self, theta: Params, state: State, gradient: Params, m: int, learning_rate: float) -> Step:
        """One pass over the parameters, by torch's fused kernel.

        That knows no eps_root, so what is kept in b's place is b_m + (1 - beta2^m) eps_root, whose root over
        1 - beta2^m is the same: it grows by (1 - beta2) (g_m^2 + eps_root) as b_m does by (1 - beta2) g_m^2.
        """
        a, b = state
        moved, a_m = ([p.clone() for p in own_of(part, names=theta)] for part in (theta, a))
        b_m = torch._foreach_add(own_of(b, names=theta), self.eps_root * (1 - self.beta2) / self.beta2)
        g = [laid_out_like(p, of_p) for p, of_p in zip(moved, own_of(gradient, names=theta), strict=True)]
        count = torch.full((), float(m), device=moved[0].device)
        torch._fused_adamw_(
            moved, g, a_m, b_m, [], [count] * len(moved), lr=learning_rate, beta1=self.beta1, beta2=self.beta2,
            weight_decay=self.weight_decay, eps=self.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        return Step(named(theta, moved), (named(theta, a_m), named(theta, b_m)))

    def pull_back(self, v: Params, w: State, gradients: Sets) -> StepAdjoint:
        """The transpose of ``step``; with r = sqrt(b^ + eps_root),

        dq/da = 1 / ((1 - beta1^m) (r + eps)),      dq/db = -q / ((1 - beta2^m) 2 r (r + eps))
        da/dg = 1 - beta1,                          db/dg = 2 (1 - beta2) g

        The moments are worked out again from the gradients, which halves what must be kept: g_1 .. g_M rather than
        those and the moments of every step.
        """
        a, b = map(own_of, self.start(v))
        m = len(gradients)
        for k in range(m):  # No name for a gradient here: it would live while the next one is brought back.
            a, b = self._moments(a, b, own_of(gradients[k], names=v))
        q, root = self._corrected(a, b, m)
        slope = torch._foreach_div(own_of(v), torch._foreach_add(root, self.eps))
        w_a, w_b = map(own_of, w)
        w_a = torch._foreach_add(w_a, slope, alpha=1 / (1 - self.beta1**m))
        torch._foreach_mul_(slope, q)
        torch._foreach_div_(slope, root)
        w_b = torch._foreach_add(w_b, slope, alpha=-0.5 / (1 - self.beta2**m))
        direction = torch._foreach_mul(own_of(gradients[-1], names=v), 2 * (1 - self.beta2))
        torch._foreach_mul_(direction, w_b)
        torch._foreach_add_(direction, w_a, alpha=1 - self.beta1)
        torch._foreach_mul_(w_a, self.beta1)
        torch._foreach_mul_(w_b, self.beta2)
        return StepAdjoint(named(v, direction), (named(v, w_a), named(v, w_b)))

    def _moments(self, a: Tensors, b: Tensors, g: Tensors) -> tuple[Tensors, Tensors]:
        """a_m and b_m."""
        a_m = torch._foreach_mul(a, self.beta1)
        torch._foreach_add_(a_m, g, alpha=1 - self.beta1)
        b_m = torch._foreach_mul(b, self.beta2)
        torch._foreach_addcmul_(b_m, g, g, value=1 - self.beta2)
        return a_m, b_m

    def _corrected(self, a: Tensors, b: Tensors, m: int) -> tuple[Tensors, Tensors]:
        """q_m = a^_m / (sqrt(b^_m + eps_root) + eps), and that root."""
        root = torch._foreach_div(b, 1 - self.beta2**m)
        torch._foreach_add_(root, self.eps_root)
        torch._foreach_sqrt_(root)
        q = torch._foreach_div(a, 1 - self.beta1**m)
        torch._foreach_div_(q, torch._foreach_add(root, self.eps))
        return q, root


OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
"""What ``inner_optimizer`` may be named."""


def update_rule(
    name: str, *, momentum: float = 0.9, weight_decay: float = 0.01, eps_root: float = EPS_ROOT
) -> UpdateRule:
    """The optimiser called ``name``; the numbers go to those that have them (``weight_decay`` to "adamw" alone)."""
    match name:
        case "sgd":
            return SGD()
        case "momentum":
            return Momentum(momentum=momentum)
        case "adam":
            return Adam(eps_root=eps_root)
        case "adamw":
            return Adam(weight_decay=weight_decay, eps_root=eps_root)
    raise UserError(
        f"Unknown inner optimiser {name!r} (inner_optimizer, --set inner_optimizer=...); "
        f"known: {', '.join(OPTIMIZERS)}." + did_you_mean(name, OPTIMIZERS)
    )


def _zeros(like: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in like.items()}
