r"""The meta-gradient: d outer(theta_M) / d theta through M steps of the attacker's finetuning, at first-order memory.

With theta_0 = theta and theta_m = theta_{m-1} - tau P grad L_m(theta_{m-1}) (Eq. 2; Algorithm 1, lines 13-15), or a
step of momentum, Adam or AdamW in its place,

    L_meta(theta) = outer(theta_M) + zeta L_DM(theta; D_retain)                                                 (Eq. 3)
    outer(theta_M) = -L_DM(theta_M; D_FT) - zeta L_DM(theta_M; D_retain)

the chain rule, read from the end, gives the gradient of outer, v_0, by the adjoint recursion

    v_M     = grad outer(theta_M)
    v_{m-1} = v_m - tau H_m d_m,   H_m the Hessian at theta_{m-1} of the *same* L_m: batch, noise, timesteps

where d_m = P v_m for SGD. L_meta's term at theta itself has no way back: the outer step takes its gradient along with
the others at theta (``objective.losses_at_theta``, and with a margin ``objective.direct_loss``).

When outer is a mean over theta_1 .. theta_M (``meta_loss = "path"``), each theta_m starts an adjoint of its own. They
are linear, so they travel as one:

    v_M = grad outer(theta_M) / M,     v_m += grad outer(theta_m) / M   for m = M-1 .. 1, before it is pulled back

An optimiser with a memory makes d_m of P v_m and of the adjoint of that memory, which travels along, and weight decay
shrinks v_m (``meta/optimizers.py``).

v runs over all parameters; whoever trains only some of them restricts the result, at the very end. The objects below
differ in one thing: how they multiply by H_m. One product is alive at a time, so memory does not grow with M beyond the
M stored parameter sets (with Adam, M gradients too), which may lie in host memory (``meta/store.py``). Treated as
constant: each loss's batch, noise and timesteps, the attacker's tau, delta and other numbers, and P. Nothing else.

Symbols: theta, v: parameter dictionaries; M: number of inner losses; eps: the length of a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.products import ProductBefore, difference, double_backward, low_precision, usual_step
from metaunlearn.meta.store import Borrow, Stack, copied, taken
from metaunlearn.meta.terms import OuterTerms
from metaunlearn.models.precision import Products, float32_products
from metaunlearn.parameters import Loss, Params, absorb, add


@dataclass(frozen=True, kw_only=True)
class MetaProblem:
    """One evaluation of L_meta but for its term at theta: the losses of Eq. 3, each with its batch fixed."""

    inner_losses: Sequence[Loss]
    """L_1 .. L_M, what the attacker minimises at each step."""
    inner: InnerLoop
    """How the attacker steps."""
    outer: Loss
    """The part at theta_M: -L_DM(theta_M; D_FT) - zeta L_DM(theta_M; D_retain), or what ``post_attack_loss`` and
    ``zeta_margin`` make of it."""
    along_path: bool = False
    """Whether ``outer`` is the mean over theta_1 .. theta_M rather than taken at theta_M alone."""
    active: Callable[[Params], Tensor] | None = None
    """How far each retained picture's term of ``outer`` counts at theta_M, (K, B): what its direct term counts, too."""
    with_first_order: bool = False
    """Whether an exact mode also hands over the first-order meta-gradient, which it passes on its way."""
    keep_final: bool = True
    """Whether somebody wants theta_M; else its memory is free for the way back."""

    def __post_init__(self) -> None:
        if not self.inner_losses:
            raise UserError(
                "The inner loop has no step (inner_steps, --set inner_steps=...): M must be at least 1. "
                "To unlearn without the meta objective use meta=False (--no-meta)."
            )


@dataclass(frozen=True, kw_only=True)
class MetaGradient:
    """The meta-gradient and the values met on the way."""

    gradient: Params
    """v_0, d outer(theta_M) / d theta, over all parameters."""
    outer_value: float
    """outer(theta_M), or its mean over theta_1 .. theta_M."""
    inner_losses: list[float]
    """L_m(theta_{m-1}), m = 1..M: the attacker's loss as it finetunes."""
    theta_final: Params
    """theta_M, empty without ``MetaProblem.keep_final``; what the attacker does not tune are theta's own tensors."""
    active: Tensor | None = None
    """What ``MetaProblem.active`` says, the mean of it where ``outer`` is one over theta_1 .. theta_M."""
    first_order: Params | None = None
    """What ``FirstOrder`` would give, where ``MetaProblem.with_first_order`` asked an exact mode for it."""


class MetaGradientMode(Protocol):
    """How to differentiate: an object that is passed in, apart from what is differentiated."""

    def __call__(self, problem: MetaProblem, theta: Params) -> MetaGradient:
        """The gradient of ``problem`` at ``theta``."""
        ...


@dataclass(frozen=True)
class FirstOrder:
    """Every H_m taken as zero, as the authors' released code does: v_0 = v_M. M + 2 gradients; wrong by O(tau M).

    Along the path v_0 is the sum of the M terms, each taken as the attacker passes theta_m: no path is kept.

    Each g_m is then a constant, whatever the optimiser makes of it: momentum and Adam's moments carry nothing back, and
    theta_M depends on theta through theta_m = (1 - tau delta P) theta_{m-1} - (a constant) alone. With AdamW the weight
    decay delta stays: v_0 = (1 - tau delta P)^M v_M.
    """

    def __call__(self, problem: MetaProblem, theta: Params) -> MetaGradient:
        return _adjoint(problem, theta, hessian_product=None)


@dataclass(frozen=True)
class DoubleBackward:
    """H v = grad <grad L, v>: exact to rounding in any precision, and several gradients' time and memory a product.

    Float32's products are in float32, whatever TF32 is allowed elsewhere.
    """

    def __call__(self, problem: MetaProblem, theta: Params) -> MetaGradient:
        with float32_products("ieee"):
            return _adjoint(problem, theta, double_backward)


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """H d as a difference of two gradients (``meta/products.py``): ordinary gradients only, float32 or float64.

    Where the stored sets lie elsewhere theta itself moves meanwhile, and is put back bit by bit whatever happens.
    """

    relative_step: float | None = None
    """||eps d|| / ||P theta||; None: the measured best of the precision (``RELATIVE_STEPS``, docs/numerics.md)."""
    precision: Products = "ieee"
    """Of the products inside the network, all the way."""

    def __post_init__(self) -> None:
        if self.relative_step is not None and not 0 < self.relative_step < 1:
            raise UserError(f"relative_step must lie between 0 and 1, or be None; got {self.relative_step!r}.")

    def __call__(self, problem: MetaProblem, theta: Params) -> MetaGradient:
        reason = low_precision(theta)
        if reason:
            raise UserError(
                f"meta_gradient 'gradient-difference' (--set meta_gradient=...) wants float32 or float64; {reason}. "
                "Rounding would swamp the difference. Load the model in float32, or use 'double-backward'."
            )
        with float32_products(self.precision):
            return _adjoint(problem, theta, self._product)

    def product(self, loss: Loss, theta: Params, direction: Params) -> Params:
        """One product, for whoever needs it outside the recursion; a ``HessianProduct``."""
        with float32_products(self.precision):
            return self._product(loss, theta, direction)

    def _product(self, loss: Loss, theta: Params, direction: Params, borrow: Borrow = copied) -> Params:
        relative_step = self.relative_step or usual_step(theta, self.precision)
        return difference(loss, theta, direction, relative_step, borrow)


def double_backward_product(loss: Loss, theta: Params, direction: Params) -> Params:
    """H direction = grad_theta <grad_adapted L(theta), direction>, outside the recursion; a ``HessianProduct``."""
    with float32_products("ieee"):
        return double_backward(loss, theta, direction)


def _adjoint(problem: MetaProblem, theta: Params, hessian_product: ProductBefore | None) -> MetaGradient:
    """The recursion at the top of this file; without ``hessian_product`` every H_m is zero."""
    count = len(problem.inner_losses) if problem.along_path else 1
    terms = OuterTerms(problem.outer, count, problem.inner.decay, problem.active)
    if hessian_product is None:
        visit = terms.without_hessians if problem.along_path else None
        path = problem.inner.run(theta, problem.inner_losses, keep_path=False, visit=visit)
        theta_final, first_order = path.thetas.pop(), None
        v = terms.without_hessians(len(problem.inner_losses), theta_final)
        theta_final = theta_final if problem.keep_final else {}
    else:
        path = problem.inner.run(theta, problem.inner_losses)
        theta_final = path.thetas.pop()
        v = terms.gradient(theta_final)
        theta_final = theta_final if problem.keep_final else {}
        first_order = v if problem.with_first_order else None
        w = problem.inner.optimizer.start(problem.inner.project(v))
        for m, loss in reversed(list(enumerate(problem.inner_losses))):  # From theta_{m+1} to theta_m.
            product = partial(_product_before, path.thetas, hessian_product, loss, keep=problem.along_path)
            v, w = problem.inner.pull_back(v, w, path.gradients, product)
            if len(path.gradients):
                path.gradients.pop()
            first_order = None if first_order is None else problem.inner.decay(first_order)
            if problem.along_path and m > 0:
                own = terms.gradient(path.thetas.pop())
                first_order = None if first_order is None else add(first_order, own)
                v = absorb(v, own)
    # One transfer for all values, at the end: the device is not made to wait in between.
    *inner_losses, outer = torch.stack([*path.losses, terms.value()]).tolist()
    return MetaGradient(
        gradient=v,
        outer_value=outer,
        inner_losses=inner_losses,
        theta_final=theta_final,
        active=terms.active(),
        first_order=first_order,
    )


def _product_before(
    thetas: Stack, hessian_product: ProductBefore, loss: Loss, direction: Params, *, keep: bool = False
) -> Params:
    """H_m d_m at theta_{m-1}, which is taken from ``thetas`` only now: the optimiser's way back needs it not.

    With ``keep`` it stays there.
    """
    theta, borrow = (thetas[-1], copied) if keep else taken(thetas)
    return hessian_product(loss, theta, direction, borrow)
