r"""The gradient through finetuning that is taken for a proximal point, by a few Richardson iterations.

ResAlign (Li et al., NeurIPS 2025) takes what finetuning leads to for the minimiser behind a Moreau envelope,

    theta_FT(theta) = argmin_p  L_FT(p) + rho / 2 || P (p - theta) ||^2,      p = theta outside P

so that, by the implicit function theorem, with v = grad L(theta_FT) of some loss L and H the Hessian of L_FT there,

    d L(theta_FT) / d theta = u             inside P,    (I + P H P / rho) u = P v
                            = v - H u / rho outside.

The system is solved by Richardson's iteration from u_0 = 0, K of them at the damping s,

    u_{k+1} = (I - s (I + P H P / rho)) u_k + s P v

How theta_FT was found is of no consequence, and H multiplies K - 1 times however long the finetuning was. Where the
matrix in front of u_k does not contract, s is halved, up to ``HALVINGS`` times.

Symbols: theta, u, v: parameter dictionaries; P: the projection on what the attacker tunes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from metaunlearn.parameters import Params, add, norm, scale

HALVINGS = 5
"""ResAlign's code gives up after as many."""


class Implicit(NamedTuple):
    """The gradient, and at which damping the iteration contracted."""

    gradient: Params | None
    """d L(theta_FT) / d theta over all parameters; None: the iteration contracted at no damping."""
    damping: float
    """s, from 1 down to 1/32; 0 where none did."""


def implicit_gradient(
    v: Params, product: Callable[[Params], Params], tuned: Collection[str], *, rho: float, iterations: int
) -> Implicit:
    """The equations above; ``product`` is H u over all parameters for a u over ``tuned``."""
    inside = {name: p for name, p in v.items() if name in tuned}
    once = product(inside) if iterations > 1 else {}
    for halvings in range(HALVINGS + 1):
        u = _richardson(inside, once, product, rho=rho, iterations=iterations, damping=0.5**halvings)
        if u is not None:
            break
    else:
        return Implicit(None, 0.0)
    outside = {name: p for name, p in v.items() if name not in tuned}
    if outside:
        moved = product(u)
        outside = add(outside, {name: moved[name] for name in outside}, -1 / rho)
    return Implicit({name: u[name] if name in u else outside[name] for name in v}, 0.5**halvings)


def _richardson(
    v: Params,
    once: Params,
    product: Callable[[Params], Params],
    *,
    rho: float,
    iterations: int,
    damping: float,
) -> Params | None:
    """u_K, or None where an iteration lengthens u; ``once`` is H v, which the first product is a multiple of."""
    u = scale(v, damping)
    for k in range(1, iterations):
        moved = scale(once, damping) if k == 1 else product(u)
        kept = add(scale(u, 1 - damping), {name: moved[name] for name in u}, -damping / rho)
        if norm(kept) > norm(u):
            return None
        u = add(kept, v, damping)
    return u
