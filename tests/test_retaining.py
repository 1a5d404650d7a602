"""L_retain as a distillation, and retained pictures that come without their prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaunlearn import erase
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.concepts import prompts_for
from metaunlearn.erasure.prepare import prepare
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import load
from metaunlearn.parameters import Params
from toy_denoiser import ToyDenoiser, drawn, latent_set, toy_run, toy_settings

DISTILLED = toy_settings("batch_size=4", "retain_loss=distillation", "retain_weight=0.9", "gamma1=1", "gamma2=0.3")


def moved(run: Algorithm1, by: float = 0.1) -> Algorithm1:
    """``run`` with its theta away from the teacher."""
    g = torch.Generator().manual_seed(9)
    run.theta = {name: (p.detach() + by * torch.randn(p.shape, generator=g).double()) for name, p in run.theta.items()}
    return run


def distance(theta: Params, teacher: Params, run: Algorithm1) -> torch.Tensor:
    """The mean over retained pictures and latent values of (f_theta - f_teacher)^2 at the run's next batch."""
    kept = drawn(run).retain.batch
    alpha_bar = torch.linspace(0.99, 0.02, 20)[kept.t][:, None, None, None]
    x_t = alpha_bar.sqrt().double() * kept.x_0 + (1 - alpha_bar).sqrt().double() * kept.eps.double()
    model = ToyDenoiser()
    answer = model.predict(theta, x_t, kept.t, kept.cond)
    return (answer - model.predict(teacher, x_t, kept.t, kept.cond)).square().mean()


def test_it_is_zero_where_the_model_is_and_pulls_nowhere() -> None:
    alone = DISTILLED.model_copy(update={"retain_weight": 1e6})
    gradient, record = toy_run(alone, meta=False, forget=False).outer_gradient()
    assert record["loss_retain"] == 0
    assert all(not g.any() for g in gradient.values())


def test_its_gradient_is_that_of_the_distance_to_the_teacher() -> None:
    run = moved(toy_run(DISTILLED, meta=False, forget=False))
    gradient, record = run.outer_gradient()
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    expected = distance(theta, ToyDenoiser().parameters(), run)
    assert record["loss_retain"] == pytest.approx(expected.item(), rel=1e-6)
    for g, (name, wanted) in zip(
        torch.autograd.grad(0.9 * expected, list(theta.values())), gradient.items(), strict=True
    ):
        torch.testing.assert_close(g, wanted, msg=name, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("more", [{}, {"common_noise": False}, {"meta_retain": "related"}])
def test_the_meta_objective_stays_as_it_was(more: dict[str, object]) -> None:
    """Eq. 3's losses, the direct term too, are L_DM whatever L_retain is: without lambda both agree."""
    found = []
    for kind in ("distillation", "denoising"):
        settings = DISTILLED.model_copy(update={"retain_loss": kind, "retain_weight": 0.0, **more})
        found.append(moved(toy_run(settings)).outer_gradient()[0])
    for name, g in found[0].items():
        torch.testing.assert_close(g, found[1][name], rtol=1e-12, atol=0)


def test_the_teacher_of_a_closed_form_is_the_model_before_the_edit(tmp_path: Path) -> None:
    """At theta^UN the distance to theta* is not zero."""
    result = erase(
        "canvas", ["knife"], method="uce", out=tmp_path,
        overrides=["steps=1", "retain_loss=distillation", "forget_images=2", "retain_images=4", "batch_size=2"],
    )  # fmt: skip
    assert result.out is not None
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])
    assert first["loss_retain"] > 0


def test_the_first_step_has_no_rounding_in_place_of_a_distance(tiny_model: Path, tmp_path: Path) -> None:
    """In float32 too: theta's pass has the forget rows beside, and so other rounding than one of retained rows."""
    erase(
        tiny_model, ["zebra"], meta=False, out=tmp_path / "out",
        overrides=["steps=2", "retain_loss=distillation", "forget_images=2", "retain_images=4", "batch_size=4",
                   "bank_trajectories=2", "bank_steps=2"],
    )  # fmt: skip
    first, second = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text().splitlines())
    assert first["loss_retain"] == 0
    assert second["loss_retain"] > 0


def test_dropped_prompts_change_nothing_else_of_a_batch() -> None:
    kept = latent_set(1, 30)
    nothing = Conditioning(torch.zeros(1, 2, 2).double())
    some = replace(kept, empty=nothing, dropout=0.3)
    rows = torch.arange(30).repeat(100)
    whole, thinned = (part.batch(rows, torch.Generator().manual_seed(3)) for part in (kept, some))
    for name in ("x_0", "eps", "t"):
        assert torch.equal(getattr(whole, name), getattr(thinned, name))
    empty = (thinned.cond.tokens == 0).all(dim=(1, 2))
    assert empty.double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(thinned.cond.tokens[~empty], whole.cond.tokens[~empty])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_only_retained_pictures_lose_their_prompts(tiny_model: Path, share: float) -> None:
    model = load(tiny_model)
    settings = toy_settings("forget_images=2", "retain_images=2", f"retain_dropout={share}")
    prompts = prompts_for(model.pipeline, ["zebra"], retain=["a chair"], related=["a horse"])
    data = prepare(model, prompts, {}, settings, 0, None, None)
    assert data.forget.empty is None
    for kept in (data.related, data.unrelated):
        assert (kept.empty is not None) == (share > 0)
        assert kept.dropout == share
