"""ESD: its name, its target, its trajectory bank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaunlearn.data.latents import LatentSet
from metaunlearn.erasure.esd import EsdMethod, esd_target
from metaunlearn.erasure.trajectories import TrajectoryBank, sample_trajectories
from metaunlearn.errors import UserError
from metaunlearn.meta.objective import ErasureData, OuterDraw, losses_at_theta
from metaunlearn.models import StableDiffusion, load


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> StableDiffusion:
    return load(tiny_model)


@pytest.fixture(scope="module")
def bank(model: StableDiffusion) -> TrajectoryBank:
    return new_bank(model, seed=0)


def new_bank(model: StableDiffusion, *, seed: int, batch_size: int = 32) -> TrajectoryBank:
    generator = torch.Generator().manual_seed(seed)
    return sample_trajectories(
        model, model.parameters(), ["a knife", "a picture of a knife"], count=5, steps=4, guidance_scale=3.0,
        generator=generator, batch_size=batch_size,
    )  # fmt: skip


def test_names() -> None:
    assert EsdMethod.parse("esd-u-1") == EsdMethod(subset="u", eta=1.0)
    assert EsdMethod.parse("esd-x-strict-2.5") == EsdMethod(subset="x-strict", eta=2.5)
    for wrong in ("esd-y-1", "esd-u", "esd-u--1", "ESD-u-1", "esd-u-1 "):
        with pytest.raises(UserError, match="esd-SUBSET-ETA"):
            EsdMethod.parse(wrong)


def test_target_lies_past_the_unconditional_prediction() -> None:
    """u = 1, c = 3: eta 0 gives u, eta 1 gives 1 - 2 = -1, eta 3 gives 1 - 6 = -5."""
    u, c = torch.tensor(1.0), torch.tensor(3.0)
    assert [esd_target(u, c, eta).item() for eta in (0, 1, 3)] == [1, -1, -5]


def test_bank_holds_the_teachers_own_predictions(model: StableDiffusion, bank: TrajectoryBank) -> None:
    theta = model.parameters()
    empty = model.encode_prompts([""]).expand(len(bank), -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(theta, bank.x_t, bank.t, empty), bank.unconditional)
        conditional = model.predict(theta, bank.x_t, bank.t, bank.cond[bank.prompt_of])
    torch.testing.assert_close(conditional, bank.conditional)


def test_bank_covers_the_timesteps(bank: TrajectoryBank) -> None:
    """Five paths of four latents each: every quarter of the schedule holds one latent of every path."""
    assert len(bank) == 20
    assert torch.bincount(bank.t // 250).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("eta", [1.0, 3.0])
def test_the_loss_of_the_teacher_is_the_distance_to_the_target(
    model: StableDiffusion, bank: TrajectoryBank, eta: float
) -> None:
    """The student starts as the teacher: its error is ||c - (u - eta (c - u))||^2 = (1 + eta)^2 ||c - u||^2."""
    kept = LatentSet.encode(model, torch.zeros(2, 3, 32, 32), ["a key", "a key"])
    batch = kept.draw(2, torch.Generator().manual_seed(3))
    rows = torch.tensor([3, 17, 3])
    batches = OuterDraw(bank_rows=rows, retain=batch, meta_retain=batch, inner=(), outer=batch)
    data = ErasureData(bank=bank, forget=kept, related=kept, unrelated=kept)
    with torch.no_grad():
        losses = losses_at_theta(model, model.parameters(), data, batches, eta, meta=False)
    distance = (bank.conditional[rows] - bank.unconditional[rows]).square().mean()
    torch.testing.assert_close(losses.forget, (1 + eta) ** 2 * distance)


def test_bank_is_deterministic(model: StableDiffusion, bank: TrajectoryBank) -> None:
    again = new_bank(model, seed=0)
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(bank).items())
    assert not torch.equal(new_bank(model, seed=1).x_t, bank.x_t)
