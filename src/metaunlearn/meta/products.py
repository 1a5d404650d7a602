r"""H d, the product of a loss's Hessian with a direction: by double backward, or by a difference of two gradients.

    double backward   H d = grad <grad L(theta), d>
    difference        H d = [grad L(theta + eps d) - grad L(theta - eps d)] / (2 eps) + O(eps^2)

with eps = relative_step ||P theta|| / ||d||, so the scale of d is of no consequence: what d names of theta moves by a
fixed fraction of its norm, or of a tenth of what as many of theta's have where theirs is less (biases near zero). Too
long a step meets the third derivative, too short a one rounding. A forward difference, from grad L(theta), which the
attacker stepped with, would take one gradient in place of two, and is too coarse: docs/numerics.md.

theta: all parameters; d: a direction, which may name only some of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaunlearn.errors import RunError
from metaunlearn.meta.inner import move
from metaunlearn.meta.store import Borrow, copied
from metaunlearn.models.precision import Products
from metaunlearn.parameters import (
    Loss,
    Params,
    SharedLoss,
    gradient_of,
    hand_gradient,
    leaves,
    norm,
    value_and_gradient,
)

HessianProduct = Callable[[Loss, Params, Params], Params]
"""(L, theta, d) -> H d over all of theta."""

ProductBefore = Callable[[Loss, Params, Params, Borrow], Params]
"""The same on the way back through the inner loop, and how what d names of theta may be moved."""


def difference(loss: Loss, theta: Params, direction: Params, relative_step: float, borrow: Borrow = copied) -> Params:
    """H d by a difference: ordinary gradients only."""
    length = norm(direction)
    if length == 0:
        return {name: torch.zeros_like(p) for name, p in theta.items()}
    if not math.isfinite(length):
        raise RunError(
            "the direction of a Hessian product is not finite: a loss or its gradient has run away. Lower "
            "inner_learning_rate, gamma2 or lipschitz_weight (--set KEY=...), whichever is in use."
        )
    eps = relative_step * _scale(theta, direction) / length
    constant = theta.keys() - direction.keys()  # The attacker's loss may leave out what he does not tune.
    with borrow(theta, direction) as at:
        move(at, direction, eps)
        found = value_and_gradient(loss, at, unused=constant).gradient
        move(at, direction, -2 * eps)  # What it is rounded to stands in the difference once.

        def meet(name: str, behind: Tensor) -> None:
            found[name] = (found[name] - behind) / (2 * eps)

        # One parameter at a time, so that the second gradient is never there as a set.
        hand_gradient(loss, at, meet, unused=constant)
        return found


def _scale(theta: Params, direction: Params) -> float:
    """What a difference's step is relative to: ||P theta||, and no less than ``LEAST_SHARE`` of its like in theta.

    An all-zero theta has no length to be relative to: the step is then absolute.
    """
    moved = norm({name: theta[name] for name in direction})
    if len(direction) == len(theta):
        return moved or 1.0
    share = sum(theta[name].numel() for name in direction) / sum(p.numel() for p in theta.values())
    return max(moved, LEAST_SHARE * norm(theta) * math.sqrt(share)) or 1.0


LEAST_SHARE = 0.1
"""Of the norm that as many parameters of theta's mean square have: below it the tuned ones' own norm is no measure."""

RELATIVE_STEPS: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float64: 1e-7}
"""The measured best ``relative_step`` of each precision."""


TF32_STEP = 1e-3
"""The same where float32's products are in TF32."""


def usual_step(theta: Params, products: Products = "ieee") -> float:
    """The usual ``relative_step`` for the coarsest precision among the parameters."""
    if products == "tf32":
        return TF32_STEP
    return max(RELATIVE_STEPS[dtype] for dtype in {p.dtype for p in theta.values()})


def low_precision(theta: Params) -> str | None:
    """Why ``theta``'s gradients are too coarse for a difference, in words, or None when they are not."""
    for name, p in theta.items():
        if p.dtype not in RELATIVE_STEPS:
            return f"parameter {name!r} is {p.dtype}"
    device = next(iter(theta.values())).device.type
    return f"autocast is on for {device}" if torch.is_autocast_enabled(device) else None


def double_backward(loss: Loss, theta: Params, direction: Params, _: Borrow = copied) -> Params:
    """H d by double backward: several gradients' time and memory."""
    if isinstance(loss, SharedLoss):  # H is a mean over processes, and direction is the same in all of them.
        return loss.average(double_backward(loss.own, theta, direction))
    at = leaves(theta)
    # Fused attention kernels have no second derivative; the plain one is made of operations that do.
    with sdpa_kernel(SDPBackend.MATH):
        slope = gradient_of(loss(at), {name: at[name] for name in direction}, create_graph=True)
        along = torch.stack([(slope[name] * d.detach()).sum() for name, d in direction.items()]).sum()
        if not along.requires_grad:  # L is linear
            return {name: torch.zeros_like(p) for name, p in theta.items()}
        # Zeros where the slope does not depend on a parameter: a second derivative may vanish, unlike a first one.
        product = torch.autograd.grad(along, list(at.values()), materialize_grads=True)
    return dict(zip(at, product, strict=True))
