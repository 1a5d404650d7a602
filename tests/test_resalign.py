"""ResAlign's outer gradient in float64, against its equations written out with a dense Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from meta_problems import error
from metaunlearn.checkpoint import step_generator
from metaunlearn.data.latents import ErasureData
from metaunlearn.diffusion import Batch, denoising_loss
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.resalign import ResAlign
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params
from toy_denoiser import ToyDenoiser, drawn, latent_set, toy_settings

TAUS = (0.05, 0.02, 0.01)
OPTIONS = {"resilience": 0.7, "proximity": 20.0, "iterations": 4}
WEIGHTS = {"gamma1": 0.8, "retain_weight": 0.9}
ATTACKERS = ", ".join(
    f'{{optimizer = "sgd", learning_rate = {tau}, steps = {steps}}}' for steps, tau in enumerate(TAUS, start=1)
)


def started(*more: str, **options: object) -> tuple[Algorithm1, ErasureData]:
    """ResAlign at its start on the toy denoiser."""
    settings = toy_settings(
        "batch_size=4", "meta_gradient=double-backward", f"attackers=[{ATTACKERS}]", "retain_loss=denoising",
        *(f"{key}={value}" for key, value in WEIGHTS.items()), *more,
    )  # fmt: skip
    model = ToyDenoiser()
    data = ErasureData(forget=latent_set(1, 30), related=latent_set(2, 30), unrelated=latent_set(3, 30))
    task = ErasureTask(model=model, prompts=None, settings=settings, seed=0)  # type: ignore[arg-type]
    method = ResAlign.model_validate(OPTIONS | {"sampled": 2} | options)
    run = Algorithm1(
        model, data, None, settings, trained=model.parameters().keys(), meta=False, seed=0,  # type: ignore[arg-type]
        defence=method.defend(task, data),
    )  # fmt: skip
    return run, data


def l_dm(theta: Params, batch: Batch) -> Tensor:
    return denoising_loss(ToyDenoiser(), theta, batch)


def gradient_of(loss: Tensor, theta: Params) -> Params:
    return dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))


def leaf(theta: Params) -> Params:
    return {name: p.detach().clone().requires_grad_() for name, p in theta.items()}


def flat(theta: Params) -> Tensor:
    return torch.cat([p.flatten() for p in theta.values()])


def unflat(vector: Tensor, like: Params) -> Params:
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view_as(like[name]) for name, part in zip(like, parts, strict=True)}


def papers_gradient(run: Algorithm1, data: ErasureData, signs: dict[str, float], role: str = "forget") -> Params:
    """gamma_1 grad { L(theta) + r [L(theta_FT) - L(theta)] + w L_retain }, L = -L_DM, over two configurations.

    u sums four terms of the series (-H / rho)^k v, as the iteration does at the damping 1.
    """
    weight = {key: value * signs.get(key, 1.0) for key, value in (OPTIONS | WEIGHTS).items()}
    batches = drawn(run, 0)
    at = leaf(run.theta)
    r = weight["resilience"]
    loss = -(1 - r) * l_dm(at, batches.outer) + weight["retain_weight"] * l_dm(at, batches.retain.batch)
    total = flat(gradient_of(loss, at))
    generator = step_generator(0, 0, "resalign")
    for index in torch.randperm(3, generator=generator)[:2].tolist():
        torch.randint(1, (), generator=generator)
        theta_ft = run.theta
        *steps, last = [getattr(data, role).draw(4, generator) for _ in range(index + 2)]
        for batch in steps:
            at = leaf(theta_ft)
            step = gradient_of(l_dm(at, batch), at)
            theta_ft = {name: p - TAUS[index] * step[name] for name, p in theta_ft.items()}
        at = leaf(theta_ft)
        v = flat(gradient_of(-l_dm(at, batches.outer), at))
        H = hessian(lambda x, last=last: l_dm(unflat(x, run.theta), last), flat(theta_ft))
        series = [torch.linalg.matrix_power(-H / weight["proximity"], k) @ v for k in range(4)]
        total = total + r * torch.stack(series).sum(dim=0) / 2
    return unflat(weight["gamma1"] * total, run.theta)


def test_the_outer_gradient_is_the_papers() -> None:
    run, data = started()
    found, record = run.outer_gradient()
    assert record["dampings"] == [1.0, 1.0]
    assert error(found, papers_gradient(run, data, {})) < 1e-10


@pytest.mark.parametrize("flipped", [*WEIGHTS, "resilience", "proximity"])
def test_every_weight_has_a_sign_and_a_scale(flipped: str) -> None:
    run, data = started()
    found = run.outer_gradient()[0]
    for factor in (-1.0, 2.0):
        assert error(found, papers_gradient(run, data, {flipped: factor})) > 1e-3


def test_the_pictures_of_an_honest_user_may_be_finetuned_on() -> None:
    run, data = started(finetuned_on="unrelated")
    found = run.outer_gradient()[0]
    assert error(found, papers_gradient(run, data, {}, "unrelated")) < 1e-10
    assert error(found, papers_gradient(run, data, {})) > 1e-3


def test_one_iteration_and_first_order_are_one_and_gradient_difference_is_close() -> None:
    exact, record = started()[0].outer_gradient()
    one, first_order = started(iterations=1)[0].outer_gradient()
    assert first_order["beyond_first_order"] == [0, 0]
    assert all(1e-3 < distance < 1 for distance in record["beyond_first_order"])
    further = started(proximity=40.0)[0].outer_gradient()[1]["beyond_first_order"]
    assert all(a < b for a, b in zip(further, record["beyond_first_order"], strict=True))
    assert error(one, started("meta_gradient=first-order")[0].outer_gradient()[0]) == 0
    assert error(one, exact) > 1e-3
    assert error(started("meta_gradient=gradient-difference")[0].outer_gradient()[0], exact) < 1e-6


def test_a_finetuning_whose_gradient_cannot_be_had_is_left_out() -> None:
    """rho so small that no damping contracts: what is left is (1 - r) L(theta) and L_retain."""
    run, _ = started(proximity=1e-6)
    found, record = run.outer_gradient()
    assert record["dampings"] == [0.0, 0.0]
    batches = drawn(run, 0)
    at = leaf(run.theta)
    loss = -0.3 * l_dm(at, batches.outer) + 0.9 * l_dm(at, batches.retain.batch)
    assert error(found, {name: 0.8 * g for name, g in gradient_of(loss, at).items()}) < 1e-12


def test_nothing_moves_and_another_step_draws_anew() -> None:
    run, _ = started()
    first, again = run.outer_gradient()[0], run.outer_gradient()[0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    run.step = 1
    assert error(run.outer_gradient()[0], first) > 1e-3


def test_every_step_draws_configurations_of_its_own() -> None:
    run, _ = started()
    drawn_ones = []
    for run.step in range(6):
        drawn_ones.append(tuple(attacker["steps"] for attacker in run.outer_gradient()[1]["attackers"]))
    assert len(set(drawn_ones)) > 2
    assert {steps for pair in drawn_ones for steps in pair} == {1, 2, 3}
