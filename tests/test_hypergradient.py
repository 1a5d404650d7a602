"""The meta-gradient against slow, obvious references: an unrolled double backward, and a quadratic solved by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meta_problems import Build, error, mlp, unet
from metaunlearn.errors import RunError, UserError
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradientMode,
    MetaProblem,
)
from metaunlearn.meta.inner import Adjoint, InnerLoop
from metaunlearn.meta.modes import resolve
from metaunlearn.meta.products import LEAST_SHARE, RELATIVE_STEPS, TF32_STEP, difference, usual_step
from metaunlearn.models.precision import Products
from metaunlearn.parameters import Loss, Params, norm, scale, subset, value_and_gradient


def unrolled(problem: MetaProblem, theta: Params) -> Params:
    """The reference: the inner loop written out in one graph, differentiated at the end; it shares no code."""
    tau, adapted = problem.inner.learning_rate, problem.inner.adapted
    with sdpa_kernel(SDPBackend.MATH):
        start = {name: p.clone().requires_grad_() for name, p in theta.items()}
        at = dict(start)
        for loss in problem.inner_losses:
            gradient = torch.autograd.grad(loss(at), list(at.values()), create_graph=True)
            for name, g in zip(list(at), gradient, strict=True):
                if adapted is None or name in adapted:
                    at[name] = at[name] - tau * g
        return dict(zip(start, torch.autograd.grad(problem.outer(at), list(start.values())), strict=True))


def in_float32(build: Build, inner_steps: int, **kwargs: object) -> tuple[MetaProblem, Params, Params]:
    """The problem in float32, and its reference: the same numbers, unrolled in float64."""
    problem, theta = build(inner_steps, torch.float32, **kwargs)
    exact, _ = build(inner_steps, torch.float64, **kwargs)
    return problem, theta, unrolled(exact, {name: p.double() for name, p in theta.items()})


@pytest.mark.parametrize("inner_steps", [1, 3, 5])
@pytest.mark.parametrize("build", [mlp, unet])
def test_double_backward_equals_the_unrolled_gradient(build: Build, inner_steps: int) -> None:
    problem, theta = build(inner_steps)
    expected = unrolled(problem, theta)
    assert error(DoubleBackward()(problem, theta).gradient, expected) <= 1e-6
    # The test can tell: without the second-order terms the same gradient is percents away.
    assert error(FirstOrder()(problem, theta).gradient, expected) > 1e-2


@pytest.mark.parametrize("inner_steps", [1, 3, 5])
@pytest.mark.parametrize("build", [mlp, unet])
def test_gradient_difference_in_float32(build: Build, inner_steps: int) -> None:
    problem, theta, expected = in_float32(build, inner_steps)
    assert error(GradientDifference()(problem, theta).gradient, expected) <= 2e-4


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("build", [mlp, unet])
def test_gradient_difference_in_float64(build: Build, inner_steps: int) -> None:
    problem, theta = build(inner_steps)
    expected = unrolled(problem, theta)
    assert error(GradientDifference()(problem, theta).gradient, expected) <= 1e-8


@pytest.mark.parametrize("mode", [DoubleBackward(), GradientDifference()])
def test_attacker_that_tunes_cross_attention_only(mode: MetaGradientMode) -> None:
    """The gradient still covers all parameters: the frozen ones shape what the attacker's steps do."""
    _, theta = unet(1)
    problem, _ = unet(3, adapted=subset(theta, "x"))
    expected = unrolled(problem, theta)
    found = mode(problem, theta).gradient
    assert found.keys() == theta.keys()
    assert error(found, expected) <= 1e-5
    everything, _ = unet(3)
    assert error(unrolled(everything, theta), expected) > 1e-2


class Quadratic:
    r"""L_FT = 1/2 (theta - a)^T A (theta - a), outer = 1/2 (theta_M - b)^T B (theta_M - b).

    The attacker moves the first 4 of 6 coordinates: P = diag(1,1,1,1,0,0). One step is
    theta_m - a = theta_{m-1} - a - tau P A (theta_{m-1} - a) = J (theta_{m-1} - a) with J = I - tau P A, so
    theta_M = a + J^M (theta - a), and by the chain rule, A = A^T and P = P^T,
    d outer / d theta = (J^T)^M B (theta_M - b) = (I - tau A P)^M B (theta_M - b).
    """

    def __init__(self, inner_steps: int, tau: float = 0.1, dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(2)
        roots = torch.randn(2, 6, 6, generator=g, dtype=torch.float64)
        A, B = roots @ roots.mT / 3
        a, b, _, start = torch.randn(4, 6, generator=g, dtype=torch.float64)
        P = torch.diag(torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64))
        power = torch.linalg.matrix_power(torch.eye(6, dtype=torch.float64) - tau * P @ A, inner_steps)
        self.theta_final = a + power @ (start - a)
        self.v_final = B @ (self.theta_final - b)
        self.expected = power.T @ self.v_final
        self.theta = self.split(start.to(dtype))

        def half_square(matrix: Tensor, centre: Tensor) -> Loss:
            def loss(theta: Params) -> Tensor:
                offset = torch.cat(list(theta.values())) - centre.to(dtype)
                return 0.5 * offset @ matrix.to(dtype) @ offset

            return loss

        self.problem = MetaProblem(
            inner_losses=[half_square(A, a)] * inner_steps,
            inner=InnerLoop(learning_rate=tau, adapted=frozenset({"tuned"})),
            outer=half_square(B, b),
        )

    @staticmethod
    def split(vector: Tensor) -> Params:
        return {"tuned": vector[:4], "frozen": vector[4:]}


@pytest.mark.parametrize("inner_steps", [1, 3, 5])
@pytest.mark.parametrize(
    ("mode", "dtype", "tolerance"),
    [
        (DoubleBackward(), torch.float64, 1e-13),
        (DoubleBackward(), torch.float32, 1e-5),
        # A quadratic has no third derivative, so a difference is exact up to rounding and likes a long step.
        (GradientDifference(), torch.float64, 1e-8),
        (GradientDifference(relative_step=1e-2), torch.float64, 1e-12),
        (GradientDifference(relative_step=1e-2), torch.float32, 1e-4),
    ],
    ids=str,
)
def test_quadratic(mode: MetaGradientMode, dtype: torch.dtype, tolerance: float, inner_steps: int) -> None:
    known = Quadratic(inner_steps, dtype=dtype)
    found = mode(known.problem, known.theta)
    assert error(found.gradient, known.split(known.expected)) <= tolerance
    assert error(found.theta_final, known.split(known.theta_final)) <= 1e-5
    assert len(found.inner_losses) == inner_steps
    first_order = FirstOrder()(known.problem, known.theta).gradient
    assert error(first_order, known.split(known.v_final)) <= 1e-5
    assert error(first_order, known.split(known.expected)) > 1e-2


def restrict(a: Params, names: set[str]) -> Params:
    """P a: ``a`` on ``names``, zeros elsewhere."""
    return {name: p if name in names else torch.zeros_like(p) for name, p in a.items()}


def test_restricting_early_is_wrong() -> None:
    """phi = the frozen part: v must cross the tuned part on its way to it, else M = 3 steps are felt as none at all."""
    known = Quadratic(3)
    phi = {"frozen"}
    exact = DoubleBackward()(known.problem, known.theta).gradient
    late = restrict(exact, phi)
    assert error(late, restrict(known.split(known.expected), phi)) <= 1e-13

    class Early(InnerLoop):
        def pull_back(self, v: Params, *rest: Any) -> Adjoint:
            return super().pull_back(restrict(v, phi), *rest)

    wrong = replace(known.problem, inner=Early(learning_rate=0.1, adapted=known.problem.inner.adapted))
    assert error(restrict(DoubleBackward()(wrong, known.theta).gradient, phi), late) > 1e-2


MODES = [FirstOrder(), DoubleBackward(), GradientDifference()]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_no_step_means_no_second_order_term(mode: MetaGradientMode) -> None:
    problem, theta = mlp(3)
    still = replace(problem, inner=InnerLoop(learning_rate=0.0))
    found = mode(still, theta)
    assert all(torch.equal(found.theta_final[name], p) for name, p in theta.items())
    plain = value_and_gradient(problem.outer, theta).gradient
    assert all(torch.equal(found.gradient[name], p) for name, p in plain.items())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_bitwise_determinism_and_untouched_inputs(mode: MetaGradientMode) -> None:
    problem, theta = unet(3, torch.float32)
    before = {name: p.clone() for name, p in theta.items()}
    first, second = mode(problem, theta), mode(problem, theta)
    assert all(torch.equal(first.gradient[name], p) for name, p in second.gradient.items())
    assert all(torch.equal(theta[name], p) for name, p in before.items())
    assert not any(p.requires_grad for p in [*theta.values(), *first.gradient.values(), *first.theta_final.values()])


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_v_is_of_no_consequence(factor: float) -> None:
    """The meta-gradient is linear in the outer loss, however small or large that makes v, in float32 too."""
    problem, theta = mlp(3, torch.float32)
    mode = GradientDifference()
    scaled = mode(replace(problem, outer=lambda at: problem.outer(at) * factor), theta).gradient
    expected = scale(mode(problem, theta).gradient, factor)
    # Rounding makes the two steps differ in the last place, and the difference magnifies that, as in its own error.
    assert error(scaled, expected) <= 1e-4


@pytest.mark.parametrize("size", [1e-12, 0.0])
def test_the_step_is_no_shorter_than_the_model_wants(size: float) -> None:
    """An attacker who tunes biases near zero: a fraction of their own norm would be lost in rounding."""
    problem, theta = mlp(1, adapted=frozenset({"hidden.bias"}))
    theta["hidden.bias"] *= size
    exact = DoubleBackward()(problem, theta).gradient
    assert error(GradientDifference()(problem, theta).gradient, exact) < 1e-8


def test_the_attackers_loss_may_leave_out_what_he_does_not_tune() -> None:
    """Only the outer loss reads ``out.weight`` here; what he tunes and does not read stays an error."""
    problem, theta = mlp(2, adapted=frozenset({"hidden.weight", "hidden.bias"}))
    apart = [lambda at, loss=loss: loss(at | {"out.weight": theta["out.weight"]}) for loss in problem.inner_losses]
    apart_problem = replace(problem, inner_losses=apart)
    exact = DoubleBackward()(apart_problem, theta).gradient
    assert error(GradientDifference()(apart_problem, theta).gradient, exact) < 1e-8
    everything, _ = mlp(2)
    with pytest.raises(RunError, match=r"out\.weight"):
        GradientDifference()(replace(everything, inner_losses=apart), theta)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_zero_v_stays_zero(mode: MetaGradientMode) -> None:
    problem, theta = mlp(3)
    found = mode(replace(problem, outer=lambda at: 0 * problem.outer(at)), theta)
    assert norm(found.gradient) == 0


def test_linear_inner_loss_has_no_hessian() -> None:
    problem, theta = mlp(1)
    linear = replace(problem, inner_losses=[lambda at: torch.stack([p.sum() for p in at.values()]).sum()])
    assert error(DoubleBackward()(linear, theta).gradient, FirstOrder()(linear, theta).gradient) == 0


def test_values_on_the_way() -> None:
    problem, theta = mlp(2)
    path = problem.inner.run(theta, problem.inner_losses)
    found = GradientDifference()(problem, theta)
    assert len(path.thetas) == 3
    expected = [float(loss(at)) for loss, at in zip(problem.inner_losses, path.thetas[:-1], strict=True)]
    assert found.inner_losses == pytest.approx(expected)
    assert found.outer_value == pytest.approx(float(problem.outer(path.thetas[-1])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_difference_refuses_half_precision_and_autocast(dtype: torch.dtype) -> None:
    problem, theta = mlp(1, dtype)
    with pytest.raises(UserError, match=r"gradient-difference.*float32.*double-backward"):
        GradientDifference()(problem, theta)
    problem, theta = mlp(1, torch.float32)
    with torch.autocast("cpu", dtype=dtype), pytest.raises(UserError, match="autocast"):
        GradientDifference()(problem, theta)


@pytest.mark.parametrize("mode", [GradientDifference(), DoubleBackward()], ids=["difference", "double"])
def test_exact_modes_switch_reduced_products_off_and_back_on(mode: MetaGradientMode) -> None:
    problem, theta = mlp(1, torch.float32)
    backend, seen = torch.backends.cudnn.conv, []
    before = backend.fp32_precision

    def outer(at: Params) -> Tensor:
        seen.append(backend.fp32_precision)
        return problem.outer(at)

    backend.fp32_precision = "tf32"
    try:
        mode(replace(problem, outer=outer), theta)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
    assert seen == ["ieee"]


def test_fused_attention_is_replaced_only_where_it_must_be() -> None:
    """A double backward through torch's default CPU kernel fails; the mode takes the plain one by itself."""
    problem, theta = unet(1)
    at = {name: p.clone().requires_grad_() for name, p in theta.items()}
    slope = torch.autograd.grad(problem.inner_losses[0](at), list(at.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(slope[0].sum(), list(at.values()), allow_unused=True)
    assert norm(DoubleBackward()(problem, theta).gradient) > 0


def test_not_finite_is_an_error() -> None:
    problem, theta = mlp(1, torch.float32)
    with pytest.raises(RunError, match="not finite"):
        GradientDifference()(replace(problem, outer=lambda at: problem.outer(at) * float("inf")), theta)


def test_mistakes_in_the_problem() -> None:
    problem, theta = mlp(1)
    with pytest.raises(UserError, match="inner_steps"):
        replace(problem, inner_losses=[])
    with pytest.raises(UserError, match="inner_learning_rate"):
        InnerLoop(learning_rate=-1e-3)
    with pytest.raises(UserError, match="adapted"):
        InnerLoop(learning_rate=1e-3, adapted=frozenset())
    with pytest.raises(UserError, match="'nothing'"):
        InnerLoop(learning_rate=1e-3, adapted=frozenset({"nothing"})).run(theta, problem.inner_losses)
    with pytest.raises(UserError, match="relative_step"):
        GradientDifference(relative_step=0.0)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_of_the_products(precision: Products) -> None:
    """What TF32 rounds only a GPU shows; here: what is switched on meanwhile, and that a longer step goes with it."""
    problem, theta = mlp(3, torch.float32)
    seen = []

    def outer(at: Params) -> Tensor:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
        return problem.outer(at)

    mode = resolve("gradient-difference", theta, products=precision)
    found = mode(replace(problem, outer=outer), theta).gradient
    assert seen == [(precision, precision)]
    step = {"ieee": RELATIVE_STEPS[torch.float32], "tf32": TF32_STEP}[precision]
    explicit = GradientDifference(relative_step=step, precision=precision)(problem, theta).gradient
    assert all(torch.equal(found[name], p) for name, p in explicit.items())


def test_theta_m_is_kept_only_if_wanted() -> None:
    problem, theta = mlp(3)
    kept = GradientDifference()(problem, theta)
    dropped = GradientDifference()(replace(problem, keep_final=False), theta)
    assert dropped.theta_final == {}
    assert kept.theta_final.keys() == theta.keys()
    assert all(torch.equal(p, dropped.gradient[name]) for name, p in kept.gradient.items())


def test_a_difference_moves_the_set_that_it_has() -> None:
    """No third set beside theta_m and the gradient ahead; of theta itself, which is the caller's, a copy."""
    problem, theta = mlp(3)
    seen: list[int] = []

    def watched(loss: Loss) -> Loss:
        def watching(at: Params) -> Tensor:
            seen.append(at["hidden.weight"].data_ptr())
            return loss(at)

        return watching

    GradientDifference()(replace(problem, inner_losses=[watched(loss) for loss in problem.inner_losses]), theta)
    (start, second, third), (*back, moved, last) = seen[:3], seen[3:]
    assert start == theta["hidden.weight"].data_ptr()
    assert back == [third, third, second, second]
    assert moved == last != start


def test_the_step_is_a_share_of_what_as_many_parameters_have() -> None:
    """4 numbers near zero of 100, the others 1: a tenth of sqrt(4 / 100) of the whole norm stands for their own."""
    theta = {"weight": torch.ones(96).double(), "bias": torch.full((4,), 1e-9).double()}
    seen: list[Params] = []

    def loss(at: Params) -> torch.Tensor:
        seen.append({name: p.detach().clone() for name, p in at.items()})
        return at["weight"].square().sum() + at["bias"].square().sum()

    difference(loss, theta, {"bias": torch.ones(4).double()}, 1e-3)
    moved = norm({"bias": seen[0]["bias"] - theta["bias"]})
    assert moved == pytest.approx(1e-3 * LEAST_SHARE * norm(theta) * math.sqrt(4 / 100))


def test_the_usual_step_is_that_of_the_coarsest_precision() -> None:
    single, double = torch.ones(1), torch.ones(1).double()
    assert usual_step({"a": double}) == 1e-7
    assert usual_step({"a": double, "b": single}) == usual_step({"b": single}) == 1e-5
