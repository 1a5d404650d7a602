"""The meta-gradient through momentum, Adam and AdamW, against the same attack unrolled with textbook optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from meta_problems import Build, error, mlp, unet
from metaunlearn.errors import UserError
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradientMode,
    MetaProblem,
)
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.modes import resolve
from metaunlearn.meta.optimizers import OPTIMIZERS, SGD, Adam, Momentum, UpdateRule, update_rule
from metaunlearn.parameters import Params, add, subset, value_and_gradient

MU, BETA1, BETA2, EPS, EPS_ROOT, DECAY = 0.9, 0.9, 0.999, 1e-8, 1e-8, 0.1
"""What the references below use, written out apart from the code under test; a decay large enough to be felt."""

TAU = {"sgd": 1e-2, "momentum": 1e-2, "adam": 1e-3, "adamw": 1e-3}

RULES: dict[str, UpdateRule] = {name: update_rule(name, weight_decay=DECAY) for name in OPTIMIZERS}

everywhere = pytest.mark.parametrize("name", OPTIMIZERS)
steps = pytest.mark.parametrize("inner_steps", [1, 3, 5])
networks = pytest.mark.parametrize(("build", "inner_steps"), [(mlp, 1), (mlp, 3), (mlp, 5), (unet, 3)])
parts = pytest.mark.parametrize("part", ["all", "some"])


def attacked(build: Build, name: str, inner_steps: int, part: str, dtype: torch.dtype = torch.float64) -> tuple:
    """The problem of ``build`` under the attacker ``name`` that tunes all parameters or some: a layer, or "x"."""
    problem, theta = build(inner_steps, dtype)
    some = frozenset({"hidden.weight"}) if build is mlp else subset(theta, "x")
    adapted = None if part == "all" else some
    inner = InnerLoop(learning_rate=TAU[name], adapted=adapted, optimizer=RULES[name])
    return replace(problem, inner=inner), theta


def unrolled(problem: MetaProblem, name: str, theta: Params, *, constant_gradients: bool = False) -> Params:
    """The reference: the attack written out in one graph and differentiated at the end; it shares no code.

    ``constant_gradients``: FirstOrder's definition, the inner gradients cut from the graph.
    """
    tau, adapted = TAU[name], problem.inner.adapted
    start = {key: p.clone().requires_grad_() for key, p in theta.items()}
    at = dict(start)
    buffer = {key: torch.zeros_like(p) for key, p in theta.items()}
    first = {key: torch.zeros_like(p) for key, p in theta.items()}
    second = {key: torch.zeros_like(p) for key, p in theta.items()}
    with sdpa_kernel(SDPBackend.MATH):
        for count, loss in enumerate(problem.inner_losses, start=1):
            gradients = torch.autograd.grad(loss(at), list(at.values()), create_graph=True)
            for key, gradient in zip(list(at), gradients, strict=True):
                if adapted is not None and key not in adapted:
                    continue
                g = gradient.detach() if constant_gradients else gradient
                if name == "sgd":
                    at[key] = at[key] - tau * g
                elif name == "momentum":
                    buffer[key] = MU * buffer[key] + g
                    at[key] = at[key] - tau * buffer[key]
                else:
                    first[key] = BETA1 * first[key] + (1 - BETA1) * g
                    second[key] = BETA2 * second[key] + (1 - BETA2) * g * g
                    m_hat = first[key] / (1 - BETA1**count)
                    v_hat = second[key] / (1 - BETA2**count)
                    decay = DECAY if name == "adamw" else 0.0
                    at[key] = at[key] - tau * (m_hat / (torch.sqrt(v_hat + EPS_ROOT) + EPS) + decay * at[key])
        return dict(zip(start, torch.autograd.grad(problem.outer(at), list(start.values())), strict=True))


@everywhere
@parts
@networks
def test_double_backward_equals_the_unrolled_attack(build: Build, part: str, inner_steps: int, name: str) -> None:
    problem, theta = attacked(build, name, inner_steps, part)
    expected = unrolled(problem, name, theta)
    assert error(DoubleBackward()(problem, theta).gradient, expected) <= 1e-12
    # The test can tell: the second-order terms that it checks are far above its tolerance.
    assert error(FirstOrder()(problem, theta).gradient, expected) > 5e-4


@everywhere
@parts
@networks
def test_gradient_difference_in_float64(build: Build, part: str, inner_steps: int, name: str) -> None:
    problem, theta = attacked(build, name, inner_steps, part)
    expected = unrolled(problem, name, theta)
    assert error(GradientDifference()(problem, theta).gradient, expected) <= 3e-9


FLOAT32_TOLERANCES = {
    "sgd": (1e-5, 3e-4),
    "momentum": (1e-5, 6e-4),
    # The slope of Adam's first steps, up to 1 / sqrt(eps_root) = 1e4, magnifies float32's rounding of small gradients.
    "adam": (3e-4, 3e-3),
    "adamw": (3e-4, 3e-3),
}
"""Of the double backward and of the difference (docs/numerics.md)."""


@everywhere
@parts
@networks
def test_in_float32(build: Build, part: str, inner_steps: int, name: str) -> None:
    """Against the same numbers, unrolled in float64."""
    problem, theta = attacked(build, name, inner_steps, part, torch.float32)
    exact, _ = attacked(build, name, inner_steps, part)
    expected = unrolled(exact, name, {key: p.double() for key, p in theta.items()})
    for mode, tolerance in zip((DoubleBackward(), GradientDifference()), FLOAT32_TOLERANCES[name], strict=True):
        assert error(mode(problem, theta).gradient, expected) <= tolerance, mode


@everywhere
@steps
@parts
def test_first_order_is_the_attack_with_constant_gradients(part: str, inner_steps: int, name: str) -> None:
    problem, theta = attacked(mlp, name, inner_steps, part)
    expected = unrolled(problem, name, theta, constant_gradients=True)
    assert error(FirstOrder()(problem, theta).gradient, expected) <= 1e-12


def test_first_order_keeps_the_weight_decay() -> None:
    """v_0 = (1 - tau delta P)^M v_M: M = 3, tau = delta = 0.1 shrink v by 0.99^3 where the attacker tunes, else not."""
    problem, theta = mlp(3)
    inner = InnerLoop(learning_rate=0.1, adapted=frozenset({"hidden.weight"}), optimizer=Adam(weight_decay=0.1))
    problem = replace(problem, inner=inner)
    found = FirstOrder()(problem, theta)
    v_final = value_and_gradient(problem.outer, found.theta_final).gradient
    expected = v_final | {"hidden.weight": 0.99**3 * v_final["hidden.weight"]}
    assert error(found.gradient, expected) <= 1e-14


TORCH: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=TAU["sgd"]),
    "momentum": lambda p: torch.optim.SGD(p, lr=TAU["momentum"], momentum=MU),
    "adam": lambda p: torch.optim.Adam(p, lr=TAU["adam"]),
    "adamw": lambda p: torch.optim.AdamW(p, lr=TAU["adamw"], weight_decay=DECAY),
}


@everywhere
@parts
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_forward_path_is_torchs(name: str, part: str, dtype: torch.dtype, tolerance: float) -> None:
    """theta_1 .. theta_5 with eps_root = 0, which torch does not have; ||difference|| / ||theta_m - theta||."""
    problem, theta = attacked(mlp, name, 5, part, dtype)
    rule = update_rule(name, weight_decay=DECAY, eps_root=0.0)
    path = replace(problem.inner, optimizer=rule).run(theta, problem.inner_losses).thetas
    at = {key: p.clone().requires_grad_() for key, p in theta.items()}
    tuned = [p for key, p in at.items() if problem.inner.adapted is None or key in problem.inner.adapted]
    optimizer = TORCH[name](tuned)
    for loss, ours in zip(problem.inner_losses, path[1:], strict=True):
        optimizer.zero_grad()
        loss(at).backward()
        optimizer.step()
        theirs = {key: p.detach() for key, p in at.items()}
        moved = add(theirs, theta, -1.0)
        assert error(add(ours, theta, -1.0), moved) <= tolerance / TAU[name]
        assert all(torch.equal(ours[key], p) for key, p in theta.items() if not moved[key].any())


def test_adam_goes_by_name_not_by_memory() -> None:
    """A convolution's gradient may have its channels last; the step is that of the formula, and its inputs stay."""
    rule, tau = Adam(weight_decay=DECAY), 0.1
    p, g = torch.rand((2, 4, 3, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta, gradient = {"conv": p}, {"conv": g.contiguous(memory_format=torch.channels_last)}
    start, before = rule.start(theta), p.clone()
    first = rule.step(theta, start, gradient, 1, tau)
    found = rule.step(first.theta, first.state, gradient, 2, tau).theta["conv"]
    expected = p
    for _ in range(2):  # An unchanging gradient is both its own mean and the root of its mean square.
        expected = (1 - tau * DECAY) * expected - tau * g / ((g**2 + rule.eps_root).sqrt() + rule.eps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert torch.equal(theta["conv"], before)
    assert not any(part["conv"].any() for part in start)
    assert first.theta["conv"].is_contiguous()


MODES = [FirstOrder(), DoubleBackward(), GradientDifference()]


@everywhere
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_no_step_means_no_attack(mode: MetaGradientMode, name: str) -> None:
    problem, theta = attacked(mlp, name, 3, "all")
    found = mode(replace(problem, inner=replace(problem.inner, learning_rate=0.0)), theta)
    assert all(torch.equal(found.theta_final[key], p) for key, p in theta.items())
    plain = value_and_gradient(problem.outer, theta).gradient
    assert all(torch.equal(found.gradient[key], p) for key, p in plain.items())


@everywhere
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_attack_starts_afresh(mode: MetaGradientMode, name: str) -> None:
    """The same call twice gives the same bits: no state is carried from one simulated attack to the next."""
    problem, theta = attacked(unet, name, 3, "some", torch.float32)
    first, second = mode(problem, theta), mode(problem, theta)
    assert all(torch.equal(first.gradient[key], p) for key, p in second.gradient.items())


@pytest.mark.parametrize("mode", [DoubleBackward(), GradientDifference()], ids=str)
def test_a_gradient_of_exactly_zero(mode: MetaGradientMode) -> None:
    """Where torch's Adam has the derivative 0/0, eps_root gives the limit of small gradients.

    The loss of the first step does not move ``out.weight`` (factor 0), so that its gradient, and both moments, are 0.
    """
    problem, theta = attacked(mlp, "adam", 3, "all")
    first, *others = problem.inner_losses

    def half_dead(at: Params) -> torch.Tensor:
        return first(at | {"out.weight": theta["out.weight"]}) + 0 * at["out.weight"].sum()

    problem = replace(problem, inner_losses=[half_dead, *others])
    assert error(mode(problem, theta).gradient, unrolled(problem, "adam", theta)) <= 1e-8


def test_memory_of_the_path() -> None:
    """Gradients are kept for Adam's way back alone, and then of what the attacker tunes; first order keeps neither."""
    for name, kept in (("sgd", 0), ("momentum", 0), ("adam", 3), ("adamw", 3)):
        problem, theta = attacked(mlp, name, 3, "some")
        path = problem.inner.run(theta, problem.inner_losses)
        assert [set(gradient) for gradient in path.gradients] == [{"hidden.weight"}] * kept
        assert len(path.thetas) == 4
        last = problem.inner.run(theta, problem.inner_losses, keep_path=False)
        assert (len(last.thetas), last.gradients) == (1, [])


@everywhere
def test_auto_takes_the_difference_on_a_smooth_network(name: str) -> None:
    problem, theta = attacked(mlp, name, 3, "all", torch.float32)
    assert isinstance(resolve("auto", theta, problem), GradientDifference)


@pytest.mark.parametrize("last", [False, True])
def test_auto_goes_by_the_worst_of_its_probes(last: bool) -> None:
    """One attacker whose loss has ripples far shorter than any step of the difference spoils it for both."""
    smooth, theta = attacked(mlp, "adam", 1, "all", torch.float32)
    [loss] = smooth.inner_losses
    rough = replace(
        attacked(mlp, "sgd", 1, "all", torch.float32)[0],
        inner_losses=[lambda at: loss({key: p + 1e-10 * torch.sin(1e6 * p) for key, p in at.items()})],
    )
    probes = (smooth, rough) if last else (rough, smooth)
    assert resolve("auto", theta, *probes) == DoubleBackward()


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"'adamx'.*inner_optimizer.*Did you mean"):
        update_rule("adamx")
    with pytest.raises(UserError, match="inner_momentum"):
        Momentum(momentum=1.0)
    with pytest.raises(UserError, match="inner_weight_decay"):
        Adam(weight_decay=-0.1)
    with pytest.raises(UserError, match="inner_eps_root"):
        Adam(eps_root=-1e-8)
    assert InnerLoop(learning_rate=1e-3).optimizer == SGD()
