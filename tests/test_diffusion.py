"""The diffusion equations against their definitions."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.diffusion import Batch, NoiseSchedule, denoising_loss, draw_timesteps, guided, joined, squared_errors
from metaunlearn.errors import UserError
from metaunlearn.parameters import Params


class Linear:
    """f_theta(x_t, t, cond) = a x_t: simple enough to compute its loss by hand."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return theta["a"] * x_t


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule.of(DDPMScheduler())


def some_batch(count: int = 6, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    shape = (count, 2, 3, 3)
    return Batch(
        x_0=torch.randn(shape, generator=g),
        cond=Conditioning(torch.zeros(count, 1, 1)),
        eps=torch.randn(shape, generator=g),
        t=torch.randint(1000, (count,), generator=g),
    )


def test_add_noise_is_the_schedulers(schedule: NoiseSchedule) -> None:
    batch = some_batch()
    expected = DDPMScheduler().add_noise(batch.x_0, batch.eps, batch.t)
    torch.testing.assert_close(schedule.add_noise(batch.x_0, batch.eps, batch.t), expected)


def test_noise_levels_are_looked_up_where_the_timesteps_are(schedule: NoiseSchedule) -> None:
    """The meta device stands for a card: a t that is copied to the host would fail there, and make a card wait."""
    x, t = torch.zeros(2, 1, 1, 1, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    assert schedule.add_noise(x, x, t).device.type == "meta"
    batch = some_batch()
    assert schedule.add_noise(batch.x_0, batch.eps, batch.t).isfinite().all()


def test_velocity_target_is_the_schedulers() -> None:
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    batch = some_batch()
    expected = scheduler.get_velocity(batch.x_0, batch.eps, batch.t)
    torch.testing.assert_close(NoiseSchedule.of(scheduler).target(batch.x_0, batch.eps, batch.t), expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_step_is_the_schedulers(kind: str) -> None:
    """diffusers steps from t to t - 1000/steps with eta 0; the last step of set_alpha_to_one goes to x_0."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    schedule, batch = NoiseSchedule.of(scheduler), some_batch()
    for t in (900, 500, 0):
        at = torch.full((6,), t)
        expected = scheduler.step(batch.eps, t, batch.x_0).prev_sample
        torch.testing.assert_close(schedule.ddim_step(batch.x_0, batch.eps, at, at - 100), expected)


def test_targets_are_what_the_loss_of_a_perfect_prediction_needs() -> None:
    """sample: x_0 itself; its one-step estimate at t_next < 0 is the output."""
    schedule, batch = NoiseSchedule.of(DDPMScheduler(prediction_type="sample")), some_batch()
    assert torch.equal(schedule.target(batch.x_0, batch.eps, batch.t), batch.x_0)
    x_t = schedule.add_noise(batch.x_0, batch.eps, batch.t)
    torch.testing.assert_close(
        schedule.ddim_step(x_t, batch.x_0, batch.t, torch.full((6,), 300)),
        schedule.add_noise(batch.x_0, batch.eps, torch.full((6,), 300)),
    )


def test_denoising_loss_by_hand(schedule: NoiseSchedule) -> None:
    """With a = 0 the prediction is 0, so the loss is the mean square of the noise."""
    batch = some_batch()
    loss = denoising_loss(Linear(schedule), {"a": torch.zeros(())}, batch)
    torch.testing.assert_close(loss, batch.eps.square().mean())


def test_joined_batches_give_the_errors_of_each(schedule: NoiseSchedule) -> None:
    model, theta = Linear(schedule), {"a": torch.tensor(0.3)}
    one, two = some_batch(4, seed=1), some_batch(3, seed=2)
    both = squared_errors(model, theta, joined(one, two))
    torch.testing.assert_close(both, torch.cat([squared_errors(model, theta, b) for b in (one, two)]))


def test_guidance() -> None:
    u, c = torch.tensor([1.0]), torch.tensor([3.0])
    assert guided(u, c, 0).item() == 1
    assert guided(u, c, 1).item() == 3
    assert guided(u, c, 2).item() == 5


def test_stratified_timesteps_take_one_from_each_stratum() -> None:
    for seed in range(20):
        t = draw_timesteps(8, 1000, torch.Generator().manual_seed(seed))
        assert sorted((t // 125).tolist()) == list(range(8))


def test_stratified_timesteps_are_uniform_one_by_one() -> None:
    """Each position alone is uniform on 0..999: mean 499.5, and 4,000 draws have a standard error of 4.6."""
    first = torch.stack([draw_timesteps(8, 1000, torch.Generator().manual_seed(s))[0] for s in range(4000)])
    assert abs(first.float().mean().item() - 499.5) < 20
    assert first.min() < 10
    assert first.max() > 989


def test_foreign_schedulers_are_refused() -> None:
    with pytest.raises(UserError, match="alphas_cumprod"):
        NoiseSchedule.of(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="'flow_prediction'"):
        NoiseSchedule.of(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True))
    with pytest.raises(UserError, match="rescale_betas_zero_snr"):
        NoiseSchedule.of(DDIMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True))
    pure_noise = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert NoiseSchedule.of(pure_noise).timesteps == 1000


def test_a_step_to_timestep_0_keeps_its_noise_and_one_below_has_none() -> None:
    schedule, batch = NoiseSchedule.of(DDPMScheduler(prediction_type="sample")), some_batch()
    x_t = schedule.add_noise(batch.x_0, batch.eps, batch.t)
    at_0, below = (schedule.ddim_step(x_t, batch.x_0, batch.t, torch.full((6,), t)) for t in (0, -1))
    torch.testing.assert_close(at_0, schedule.add_noise(batch.x_0, batch.eps, torch.zeros(6, dtype=torch.int64)))
    assert torch.equal(below, batch.x_0)
    assert not torch.allclose(at_0, below)


def test_stratified_timesteps_have_a_place_of_their_own_in_each_stratum() -> None:
    places = draw_timesteps(8, 1000, torch.Generator().manual_seed(0)) % 125
    assert len(set(places.tolist())) > 4
