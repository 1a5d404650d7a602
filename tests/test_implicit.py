"""The gradient through a proximal point, against the linear system that it approximates, in float64.

L_FT(p) = p^T A p / 2 has H = A everywhere, and with L(p) = v^T p the gradient at the proximal point is v. What lies
outside P stays where theta has it: p_P = (A_PP + rho I)^-1 (rho theta_P - A_PR theta_R).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meta_problems import error
from metaunlearn.meta.implicit import implicit_gradient
from metaunlearn.parameters import Params

SIZES = {"a": 2, "b": 3, "c": 1}
ALL = frozenset(SIZES)
RHO = 2.0


def params(vector: Tensor) -> Params:
    return dict(zip(SIZES, vector.split(list(SIZES.values())), strict=True))


def vector(given: Params) -> Tensor:
    return torch.cat([given[name] if name in given else torch.zeros(SIZES[name]).double() for name in SIZES])


def curvature(lowest: float, highest: float) -> Tensor:
    """A symmetric matrix with eigenvalues from ``lowest`` to ``highest``."""
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()).Q
    return basis @ torch.diag(torch.linspace(lowest, highest, 6).double()) @ basis.T


V = torch.randn(6, generator=torch.Generator().manual_seed(1)).double()


def found(A: Tensor, tuned: frozenset[str] = ALL, *, iterations: int, sign: float = 1.0) -> tuple[Params | None, float]:
    return implicit_gradient(params(V), lambda u: params(sign * A @ vector(u)), tuned, rho=RHO, iterations=iterations)


def explicit(A: Tensor, tuned: frozenset[str]) -> Params:
    """J^T v, J the Jacobian of p(theta), by solving the system."""
    inside = torch.tensor([name in tuned for name, size in SIZES.items() for _ in range(size)])
    J = torch.eye(6).double()
    system = A[inside][:, inside] + RHO * torch.eye(int(inside.sum())).double()
    right = torch.zeros(int(inside.sum()), 6).double()
    right[:, inside] = RHO * torch.eye(int(inside.sum())).double()
    right[:, ~inside] = -A[inside][:, ~inside]
    J[inside] = torch.linalg.solve(system, right)
    return params(J.T @ V)


@pytest.mark.parametrize("tuned", [ALL, frozenset({"a", "b"}), frozenset({"c"})])
@pytest.mark.parametrize("highest", [1.0, 15.0])  # At 15 the damping 1 does not contract.
def test_many_iterations_solve_the_system(tuned: frozenset[str], highest: float) -> None:
    gradient, damping = found(curvature(0.1, highest), tuned, iterations=5000)
    assert gradient is not None
    assert (damping == 1) == (highest == 1.0)
    assert error(gradient, explicit(curvature(0.1, highest), tuned)) < 1e-12


def test_a_sign_is_seen() -> None:
    A = curvature(0.1, 1.0)
    assert error(found(A, iterations=400, sign=-1.0)[0], explicit(A, ALL)) > 0.1  # type: ignore[arg-type]


def test_five_iterations_are_five_terms_of_the_series() -> None:
    """At the damping 1 the iteration is Neumann's series: sum over k < 5 of (-A / rho)^k v."""
    A = curvature(0.1, 1.0)
    terms = [torch.linalg.matrix_power(-A / RHO, k) @ V for k in range(5)]
    gradient, damping = found(A, iterations=5)
    assert damping == 1
    assert gradient is not None
    assert error(gradient, params(torch.stack(terms).sum(dim=0))) < 1e-14


def test_one_iteration_is_the_first_order_gradient_and_multiplies_by_nothing() -> None:
    def never(u: Params) -> Params:
        raise AssertionError

    found = implicit_gradient(params(V), never, ALL, rho=RHO, iterations=1)
    assert found.gradient is not None
    assert torch.equal(vector(found.gradient), V)


def test_where_nothing_contracts_there_is_no_gradient() -> None:
    """With A = -3 rho I every step grows: |1 - s (1 - 3)| = 1 + 2 s > 1 at any damping s."""
    calls = []

    def product(u: Params) -> Params:
        calls.append(u)
        return params(-3 * RHO * vector(u))

    assert implicit_gradient(params(V), product, ALL, rho=RHO, iterations=5) == (None, 0.0)
    assert len(calls) == 1  # The first product is the same at every damping, but for its length.
