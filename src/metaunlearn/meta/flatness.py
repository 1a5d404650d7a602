r"""Two penalties that make relearning slow without simulating it: the concept's loss is flat where finetuning begins.

*Lipschitz.* Finetuning on the concept first goes along -u, u = g / ||g|| with g = grad L_DM(theta; D_FT), and its loss
falls by ||g|| for every unit of length: the Lipschitz constant of the concept's loss in the concept's own direction.
Its weight kappa adds

    kappa ||g||,    whose gradient is kappa H u    (H: the Hessian of L_DM(theta; D_FT)).

*Sharpness.* Sharpness-aware minimisation (Foret et al., ICLR 2021), which Fan et al. (ICML 2025, arXiv:2502.05374) take
against relearning: L_forget is asked for where it is worst within the radius rho,

    L_forget(theta + rho s / ||s||)  in place of  L_forget(theta),    s = grad L_forget(theta),

to first order rho ||s|| more than L_forget; the way there is a constant. Both directions run over all parameters, as an
attacker may: not over those alone that the method trains.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metaunlearn.meta.inner import shift
from metaunlearn.meta.products import HessianProduct
from metaunlearn.parameters import Loss, Params, add, norm, scale, value_and_gradient


class Steepness(NamedTuple):
    """The Lipschitz penalty without its weight."""

    value: float
    """||g||."""
    gradient: Params
    """H u, over all parameters; zeros where g is zero."""


class Sharpness(NamedTuple):
    """What asking for a loss at its worst within a radius adds to it."""

    value: Tensor
    """L(theta + rho s / ||s||) - L(theta), a scalar tensor."""
    gradient: Params
    """The difference of the gradients at both, over all parameters."""


def steepness(concept: Loss, theta: Params, product: HessianProduct) -> Steepness:
    """||g|| and its gradient, of the loss ``concept``, L_DM(theta; D_FT)."""
    slope = value_and_gradient(concept, theta).gradient
    length = norm(slope)
    return Steepness(length, product(concept, theta, scale(slope, 1 / length if length else 0.0)))


def sharpness(forget: Loss, theta: Params, radius: float) -> Sharpness:
    """Of the loss ``forget`` within ``radius``, an absolute length in the space of theta."""
    here = value_and_gradient(forget, theta)
    length = norm(here.gradient)
    there = value_and_gradient(forget, shift(theta, here.gradient, radius / length if length else 0.0))
    return Sharpness(there.value - here.value, add(there.gradient, here.gradient, -1.0))
