"""An attacker that clips its gradients: forwards as torch does, backwards against the same attack in one graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from meta_problems import error, mlp
from metaunlearn.errors import UserError
from metaunlearn.meta.clipping import Clipped
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.optimizers import EPS_ROOT, update_rule
from metaunlearn.meta.store import host_memory
from metaunlearn.parameters import Params, add, norm, value_and_gradient

MU, TAU = 0.9, 0.05
TUNED = frozenset({"hidden.weight", "out.weight"})


def clipped(max_norm: float, name: str = "momentum", tau: float = TAU) -> tuple[MetaProblem, Params]:
    problem, theta = mlp(3)
    inner = InnerLoop(learning_rate=tau, adapted=TUNED, optimizer=Clipped(update_rule(name), max_norm))
    return replace(problem, inner=inner), theta


def first_norm() -> float:
    """||g_1||. Without clipping the three are 3.1, 3.2 and 2.6."""
    problem, theta = mlp(3)
    return norm(value_and_gradient(problem.inner_losses[0], theta, TUNED).gradient)


def unrolled(problem: MetaProblem, theta: Params, max_norm: float) -> tuple[Params, list[bool]]:
    """Momentum on gradients that were clipped by hand, in one graph; and which steps were clipped."""
    start = {key: p.clone().requires_grad_() for key, p in theta.items()}
    at, buffer, was_clipped = dict(start), {key: torch.zeros_like(theta[key]) for key in TUNED}, []
    for loss in problem.inner_losses:
        found = torch.autograd.grad(loss(at), [at[key] for key in sorted(TUNED)], create_graph=True)
        size = torch.sqrt(sum(g.square().sum() for g in found))
        factor = max_norm / (size + 1e-6)
        was_clipped.append(bool(factor < 1))
        for key, g in zip(sorted(TUNED), found, strict=True):
            buffer[key] = MU * buffer[key] + (g * factor if was_clipped[-1] else g)
            at[key] = at[key] - TAU * buffer[key]
    return dict(zip(start, torch.autograd.grad(problem.outer(at), list(start.values())), strict=True)), was_clipped


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_the_way_back_is_exact(share: float) -> None:
    """All steps clipped, or some; one of those by a thousandth, where the projection is felt all the same."""
    limit = share * first_norm()
    problem, theta = clipped(limit)
    expected, was_clipped = unrolled(problem, theta, limit)
    assert any(was_clipped)
    assert all(was_clipped) == (share < 0.5)
    assert error(DoubleBackward()(problem, theta).gradient, expected) < 1e-12
    assert error(GradientDifference()(problem, theta).gradient, expected) < 1e-8
    assert error(FirstOrder()(problem, theta).gradient, expected) > 1e-3
    on_host = replace(problem, inner=replace(problem.inner, store=host_memory))
    assert error(DoubleBackward()(on_host, theta).gradient, expected) < 1e-12


def test_the_projection_in_the_way_back_matters() -> None:
    """A clipped gradient that was taken as scaled by a constant would be visibly wrong, so the test above can tell."""
    limit = 0.3 * first_norm()
    problem, theta = clipped(limit)

    class Scaled(Clipped):
        def pull_back(self, v, w, gradients):  # type: ignore[no-untyped-def]
            found = super().pull_back(v, w, gradients)
            g = {name: gradients[-1][name] for name in v}
            factor = self.factor(norm(g))
            plain = self.rule.pull_back(v, w, gradients).direction
            return found._replace(direction={name: factor * p for name, p in plain.items()})

    wrong = replace(problem, inner=replace(problem.inner, optimizer=Scaled(update_rule("momentum"), limit)))
    expected, _ = unrolled(problem, theta, limit)
    assert error(DoubleBackward()(wrong, theta).gradient, expected) > 1e-4


def test_a_limit_beyond_every_gradient_changes_nothing() -> None:
    problem, theta = clipped(1e6, "adam", 1e-3)
    plain = replace(problem, inner=replace(problem.inner, optimizer=update_rule("adam")))
    expected = DoubleBackward()(plain, theta).gradient
    assert all(torch.equal(DoubleBackward()(problem, theta).gradient[key], p) for key, p in expected.items())


def test_forwards_it_is_torchs() -> None:
    limit = 0.3 * first_norm()
    problem, theta = clipped(limit, "sgd")
    path = problem.inner.run(theta, problem.inner_losses).thetas
    at = {key: p.clone().requires_grad_() for key, p in theta.items()}
    tuned = [at[key] for key in sorted(TUNED)]
    optimizer = torch.optim.SGD(tuned, lr=TAU)
    for step, loss in enumerate(problem.inner_losses, start=1):
        optimizer.zero_grad()
        loss(at).backward()
        torch.nn.utils.clip_grad_norm_(tuned, limit)
        optimizer.step()
        moved = add({key: p.detach() for key, p in at.items()}, theta, -1.0)
        assert error(add(path[step], theta, -1.0), moved) < 1e-12


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"inner_max_gradient_norm.*above 0"):
        Clipped(update_rule("sgd"), 0.0)


def test_adams_way_back_is_of_the_clipped_gradients() -> None:
    """Its moments are worked out again on the way back: from what it was given, which were clipped."""
    limit, tau = 0.3 * first_norm(), 1e-3
    problem, theta = clipped(limit, "adam", tau)
    start: Params = {key: p.clone().requires_grad_() for key, p in theta.items()}
    at, a, b = dict(start), dict.fromkeys(TUNED, 0.0), dict.fromkeys(TUNED, 0.0)
    for m, loss in enumerate(problem.inner_losses, start=1):
        found = torch.autograd.grad(loss(at), [at[key] for key in sorted(TUNED)], create_graph=True)
        size = torch.sqrt(sum(g.square().sum() for g in found))
        assert size > limit
        for key, g in zip(sorted(TUNED), found, strict=True):
            g = g * limit / (size + 1e-6)
            a[key], b[key] = 0.9 * a[key] + 0.1 * g, 0.999 * b[key] + 0.001 * g**2
            root = torch.sqrt(b[key] / (1 - 0.999**m) + EPS_ROOT)
            at[key] = at[key] - tau * a[key] / (1 - 0.9**m) / (root + 1e-8)
    expected = dict(zip(start, torch.autograd.grad(problem.outer(at), list(start.values())), strict=True))
    assert error(DoubleBackward()(problem, theta).gradient, expected) < 1e-9
