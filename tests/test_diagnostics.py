"""What a step says of itself: against plain references in float64, and without a trace in the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from meta_problems import error
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError
from metaunlearn.meta.diagnostics import compared, equation_4
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference
from metaunlearn.meta.objective import meta_problem
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params
from test_algorithm1 import PAPER, l_dm, paper_settings
from test_objectives import attacked_from
from toy_denoiser import drawn, toy_run


def flat(gradient: Params) -> torch.Tensor:
    return torch.cat([p.flatten() for p in gradient.values()])


def gradients(run: Algorithm1, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """a and b of Eq. 4, by autograd on the definition."""
    batches = drawn(run)
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    at = [theta[name] for name in names]
    a = torch.autograd.grad(l_dm(theta, batches.outer), at)
    b = torch.autograd.grad(l_dm(theta, batches.retain.batch), at)
    return torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b])


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize(
    ("subset", "names"), [("f", ["attn2_hidden", "out", "time"]), ("first-xattn", ["attn2_hidden"])]
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_equation_4_on_the_steps_own_batches(subset: str, names: list[str], accumulation: int, meta: bool) -> None:
    settings = paper_settings(f"diagnostics_subset={subset}", f"accumulation={accumulation}")
    run = toy_run(settings, meta=meta)
    found = run.outer_gradient()[1]["diagnostics"]
    a, b = gradients(run, names)
    assert found["orthogonal"] == pytest.approx((a @ b).item(), rel=1e-12)
    assert found["cosine"] == pytest.approx((a @ b / a.norm() / b.norm()).item(), rel=1e-12)
    assert found["ft_gradient_squared"] == pytest.approx((a @ a).item(), rel=1e-12)
    assert found["retain_gradient_squared"] == pytest.approx((b @ b).item(), rel=1e-12)
    batches = drawn(run)
    assert found["loss_ft"] == pytest.approx(l_dm(run.theta, batches.outer).item(), rel=1e-12)
    assert found["loss_retain"] == pytest.approx(l_dm(run.theta, batches.retain.batch).item(), rel=1e-12)
    assert ("loss_ft_at_theta_m" in found) == ("first_order" in found) == meta


def test_the_terms_of_equation_3_add_up() -> None:
    """-L(theta_M; D_FT) - zeta L(theta_M; D_retain) is what the log of the step has as loss_meta_at_theta_m."""
    record = toy_run(paper_settings()).outer_gradient()[1]
    found = record["diagnostics"]
    value = -found["loss_ft_at_theta_m"] - PAPER["zeta"] * found["loss_retain_at_theta_m"]
    assert record["loss_meta_at_theta_m"] == pytest.approx(value, rel=1e-12)
    assert found["loss_ft_at_theta_m"] != pytest.approx(found["loss_ft"], rel=1e-3)


@pytest.mark.parametrize("more", [(), ("inner_optimizer=adamw", "inner_weight_decay=0.5"), ("direct_term=false",)])
def test_the_error_of_first_order(more: tuple[str, ...]) -> None:
    """Exact and first order, each computed by itself, with the direct term that both share unless it is left out.

    An exact run finds it on its way; a first-order run, when asked to, with an exact meta-gradient of its own.
    """
    run = toy_run(paper_settings(*more))
    batches, [attacker] = drawn(run), run.settings.simulated
    problem = meta_problem(run.model, [batches], attacker, run.settings, theta=run.theta)
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    b = torch.autograd.grad(l_dm(theta, batches.direct.batch), list(theta.values()))
    direct = 0.0 if "direct_term=false" in more else PAPER["zeta"]
    first, exact = (
        flat({name: p + direct * g for (name, p), g in zip(mode(problem, run.theta).gradient.items(), b, strict=True)})
        for mode in (FirstOrder(), DoubleBackward())
    )
    expected = {
        "cosine": (first @ exact / first.norm() / exact.norm()).item(),
        "relative_error": ((first - exact).norm() / exact.norm()).item(),
    }
    assert expected["relative_error"] > 1e-3
    assert run.outer_gradient()[1]["diagnostics"]["first_order"] == pytest.approx(expected, rel=1e-9)
    cheap = toy_run(paper_settings(*more, "meta_gradient=first-order", "diagnostics_exact=double-backward"))
    assert cheap.outer_gradient()[1]["diagnostics"]["first_order"] == pytest.approx(expected, rel=1e-9)
    unasked = toy_run(paper_settings(*more, "meta_gradient=first-order")).outer_gradient()[1]["diagnostics"]
    assert "first_order" not in unasked


def test_an_exact_mode_hands_over_what_first_order_gives() -> None:
    run = toy_run(paper_settings("inner_optimizer=adamw"))
    batches, [attacker] = drawn(run), run.settings.simulated
    problem = meta_problem(run.model, [batches], attacker, run.settings, theta=run.theta)
    expected = FirstOrder()(problem, run.theta).gradient
    for mode in (DoubleBackward(), GradientDifference()):
        assert mode(problem, run.theta).first_order is None
        wanted = type(problem)(**{**vars(problem), "with_first_order": True})
        found = mode(wanted, run.theta).first_order
        assert found is not None
        assert error(found, expected) == 0


@pytest.mark.parametrize(
    "mode",
    [
        ("meta_gradient=double-backward",),
        ("meta_gradient=gradient-difference", "inner_store=host"),
        ("meta_gradient=first-order", "diagnostics_exact=gradient-difference"),
        ("meta_gradient=first-order", "accumulation=2", "replacement=false", "ema_decay=0.5"),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_weights_and_log_are_the_same_bits_with_and_without(mode: tuple[str, ...], meta: bool) -> None:
    def finished(every: int) -> tuple[Params, list[dict]]:
        records: list[dict] = []
        run = toy_run(paper_settings("steps=5", f"diagnostics_every={every}", *mode), meta=meta)
        return run.run(None, records.append), records

    (with_them, told), (without, silent) = finished(2), finished(0)
    assert all(torch.equal(p, without[name]) for name, p in with_them.items())
    assert ["diagnostics" in record for record in told] == [True, False, True, False, True]
    assert [{k: v for k, v in record.items() if k != "diagnostics"} for record in told] == silent


def test_vectors_by_hand() -> None:
    """a = (3, 4), b = (-4, 3) + (3, 4): <a, b> = 25, ||b||^2 = 50, cosine 1 / sqrt 2; b is off from a by (-4, 3)."""
    a, b = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([-1.0, 7.0])}
    assert equation_4(a, b) == pytest.approx(
        {
            "orthogonal": 25,
            "cosine": math.sqrt(0.5),
            "ft_gradient_squared": 25,
            "retain_gradient_squared": 50,
        }
    )
    assert equation_4(a, {"w": -b["w"]})["cosine"] == pytest.approx(-math.sqrt(0.5))
    assert compared(b, a) == pytest.approx({"cosine": math.sqrt(0.5), "relative_error": 1.0})
    nothing = {"w": torch.zeros(2)}
    assert equation_4(a, nothing)["cosine"] == compared(nothing, nothing)["cosine"] == 0


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="diagnostics_every"):
        paper_settings("diagnostics_every=-1")
    with pytest.raises(UserError, match="diagnostics_exact"):
        paper_settings("diagnostics_exact=maybe")


def test_a_subset_that_does_not_exist_is_refused_before_any_work(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'y' \(diagnostics_subset, --set diagnostics_subset="):
        erase(tiny_model, ["zebra"], out=tmp_path / "out", overrides=["diagnostics_subset=y"])
    assert not (tmp_path / "out").exists()


def test_without_common_noise_each_loss_has_its_own_noise() -> None:
    """At theta that of the direct term, at theta_M that of the term there."""
    run = toy_run(paper_settings("common_noise=false"))
    batches, found = drawn(run), run.outer_gradient()[1]["diagnostics"]
    theta_m = attacked_from(run, run.theta)
    after = l_dm(theta_m, batches.meta_retain.batch).item()
    assert found["loss_retain"] == pytest.approx(l_dm(run.theta, batches.direct.batch).item(), rel=1e-12)
    assert found["loss_retain_at_theta_m"] == pytest.approx(after, rel=1e-12)
    assert after != pytest.approx(l_dm(theta_m, batches.direct.batch).item(), rel=1e-3)
