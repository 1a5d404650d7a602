"""The two penalties on steepness in the concept's direction, against their equations by autograd in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meta_problems import error
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import configure, refuse_unheard
from metaunlearn.errors import UserError
from metaunlearn.meta.flatness import sharpness, steepness
from metaunlearn.meta.hypergradient import double_backward_product
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params, add, norm
from metaunlearn.recipe import read_recipe
from metaunlearn.unheard import refuse_ignored
from test_algorithm1 import EXACT, PAPER, l_dm, l_forget, paper_settings
from toy_denoiser import counted_gradients, drawn, toy_run, toy_settings

SMALL = read_recipe("small")
KAPPA, RHO = 0.8, 0.3
DIFFERENCE = 1e-8
"""How far H u by a difference may be from H u, relative to all of g."""


def added(run: Algorithm1, plain: Algorithm1) -> Params:
    """What the penalty adds to the outer gradient."""
    return add(run.outer_gradient()[0], plain.outer_gradient()[0], -1.0)


def slope_penalty(run: Algorithm1) -> Params:
    """gamma_1 kappa grad || grad L_DM(theta; D_FT) ||, in one graph."""
    theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
    slope = torch.autograd.grad(l_dm(theta, drawn(run).outer), list(theta.values()), create_graph=True)
    length = torch.cat([g.flatten() for g in slope]).norm()
    found = torch.autograd.grad(PAPER["gamma1"] * KAPPA * length, list(theta.values()))
    return dict(zip(theta, found, strict=True))


def uphill(run: Algorithm1) -> Params:
    """gamma_1 [grad L_forget(theta + rho s / ||s||) - grad L_forget(theta)], by hand."""

    def gradient(at: Params) -> Params:
        theta = {name: p.clone().requires_grad_() for name, p in at.items()}
        found = torch.autograd.grad(PAPER["gamma1"] * l_forget(theta, drawn(run)), list(theta.values()))
        return dict(zip(theta, found, strict=True))

    here = gradient(run.theta)
    length = torch.cat([g.flatten() for g in here.values()]).norm()
    there = {name: p + RHO * here[name] / length for name, p in run.theta.items()}
    return add(gradient(there), here, -1.0)


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("more", [(), ("batch_size=2", "accumulation=2")], ids=["whole", "in parts"])
def test_the_penalties_are_their_equations(meta: bool, more: tuple[str, ...]) -> None:
    plain = toy_run(paper_settings(*more), meta=meta)
    for setting, expected, tolerance in (
        (f"lipschitz_weight={KAPPA}", slope_penalty(plain), DIFFERENCE),
        (f"sharpness_radius={RHO}", uphill(plain), EXACT),
    ):
        found = added(toy_run(paper_settings(*more, setting), meta=meta), plain)
        assert error(found, expected) < tolerance, setting
        # Neither is so small that its sign or its size would not be seen.
        assert norm(expected) > 1e-2 * norm(plain.outer_gradient()[0])


def test_both_at_once_and_what_the_log_says() -> None:
    plain = toy_run(paper_settings())
    both = toy_run(paper_settings(f"lipschitz_weight={KAPPA}", f"sharpness_radius={RHO}"))
    assert error(added(both, plain), add(slope_penalty(plain), uphill(plain))) < DIFFERENCE
    record = both.outer_gradient()[1]
    theta = {name: p.clone().requires_grad_() for name, p in plain.theta.items()}
    slope = torch.autograd.grad(l_dm(theta, drawn(plain).outer), list(theta.values()))
    assert record["concept_slope"] == pytest.approx(norm(dict(zip(theta, slope, strict=True))), rel=1e-9)
    assert record["sharpness"] > 0  # Uphill.
    assert not {"concept_slope", "sharpness"} & plain.outer_gradient()[1].keys()


def test_training_against_the_slope_flattens_it() -> None:
    """Steps 41 to 60 of a plain run with the penalty meet a concept's loss that falls more slowly than without it."""
    slopes = []
    for weight in (0.0, 1.0):
        run = toy_run(paper_settings(f"lipschitz_weight={weight}", "learning_rate=0.01", "steps=60"), meta=False)
        met = 0.0
        for step in range(60):
            theta = {name: p.clone().requires_grad_() for name, p in run.theta.items()}
            slope = torch.autograd.grad(l_dm(theta, drawn(run).outer), list(theta.values()))
            met += norm(dict(zip(theta, slope, strict=True))) if step >= 40 else 0.0
            run.take_step()
        slopes.append(met)
    assert slopes[1] < 0.9 * slopes[0]


def test_where_there_is_no_slope_there_is_no_direction() -> None:
    flat = {"w": torch.zeros(3, dtype=torch.float64)}

    def bowl(theta: Params) -> torch.Tensor:
        return theta["w"].square().sum()

    steep = steepness(bowl, flat, double_backward_product)
    assert (steep.value, norm(steep.gradient)) == (0, 0)
    assert norm(sharpness(bowl, flat, 0.1).gradient) == 0


# --- What is refused, and what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["lipschitz_weight=1", "sharpness_radius=1"])
def test_what_would_go_unheard_is_refused(setting: str, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="because gamma1 is 0"):
        refuse_ignored(toy_settings(setting, "gamma1=0"), [setting])
    with pytest.raises(UserError, match="trains nothing"):
        refuse_unheard(configure("uce", SMALL), [setting], meta=False)
    refuse_unheard(configure("esd-u-1", SMALL), [setting], meta=False)
    with pytest.raises(UserError, match="does not read"):
        erase(tiny_model, ["zebra"], method="resalign", meta=False, overrides=[setting], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_closed_form_method_has_no_forget_loss_to_be_sharp(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="or lipschitz_weight, which every method has"):
        erase(tiny_model, ["zebra"], method="uce", overrides=["sharpness_radius=1"], out=tmp_path / "out")


def test_the_doctor_counts_them() -> None:
    without = counted_gradients(toy_settings(), meta=True)
    assert counted_gradients(toy_settings("lipschitz_weight=1"), meta=True) == without + 3
    assert counted_gradients(toy_settings("sharpness_radius=1"), meta=True) == without + 2
    assert counted_gradients(toy_settings("sharpness_radius=1"), meta=True, forget=False) == counted_gradients(
        toy_settings(), meta=True, forget=False
    )
