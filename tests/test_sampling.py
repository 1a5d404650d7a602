"""Minibatches epoch by epoch: every picture once an epoch, orders and positions from the seed and the step alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import break_at_the_fourth_step
from metaunlearn.checkpoint import step_generator
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.latents import LatentSet
from metaunlearn.data.sampling import Epochs, Independent, independent_rows
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError
from metaunlearn.meta.train import Algorithm1
from test_attackers import MIXTURE
from toy_denoiser import drawn, toy_run, toy_settings

UNET = "unet/diffusion_pytorch_model.safetensors"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "count"), [(6, 2), (6, 4), (6, 6), (5, 3), (4, 9), (1, 3)])
def test_every_picture_comes_once_an_epoch(size: int, count: int) -> None:
    """Batches laid end to end are whole permutations, also where a batch ends one epoch and begins the next."""
    epochs = 12 * count // size
    rows = torch.cat([Epochs(0)("a", turn, size, count, generator()) for turn in range(12)])
    assert len(rows) == 12 * count
    for epoch in range(epochs):
        assert sorted(rows[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_orders_differ_between_epochs_streams_and_seeds_and_nothing_else() -> None:
    def order(seed: int, stream: str, epoch: int) -> list[int]:
        return Epochs(seed)(stream, epoch, 20, 20, generator(99)).tolist()

    orders = [order(0, "a", 0), order(0, "a", 1), order(0, "b", 0), order(1, "a", 0)]
    assert len(set(map(tuple, orders))) == 4
    assert order(0, "a", 0) == Epochs(0)("a", 0, 20, 20, generator(1)).tolist()


def test_each_seed_step_and_stream_draws_otherwise() -> None:
    """Those of seed 1 and step 1 are the ones that earlier versions drew."""
    every = [step_generator(s, n, stream).initial_seed() for s in (0, 1) for n in range(5) for stream in ("", "a")]
    assert len(set(every)) == len(every)
    digest = hashlib.blake2b(b"1/a/1", digest_size=8).digest()
    assert step_generator(1, 1, "a").initial_seed() == int.from_bytes(digest, "little") // 2


def test_the_generator_is_left_alone_and_no_pictures_are_no_rows() -> None:
    g = generator()
    before = g.get_state()
    assert Epochs(0)("a", 3, 5, 0, g).tolist() == []
    Epochs(0)("a", 3, 5, 4, g)
    assert torch.equal(g.get_state(), before)


def test_independent_batches_have_no_picture_twice_where_they_need_not() -> None:
    assert sorted(Independent()("a", 7, 5, 5, generator()).tolist()) == [0, 1, 2, 3, 4]
    assert independent_rows(2, 5, generator()).max() <= 1


def pictures_of(run: Algorithm1, steps: int) -> dict[str, list[float]]:
    """What every stream has shown in ``steps`` steps, by the mean of the picture that a batch's latent is nearest."""
    seen: dict[str, list[int]] = {"inner": [], "outer": [], "related": [], "unrelated": []}
    for step in range(steps):
        found = drawn(run, step)
        kept = found.retain
        rows = {
            "inner": [x for batch in found.inner for x in batch.x_0],
            "outer": list(found.outer.x_0),
            "related": list(kept.batch.x_0[: kept.related]),
            "unrelated": list(kept.batch.x_0[kept.related :]),
        }
        for stream, latents in rows.items():
            data = run.data.forget if stream in {"inner", "outer"} else getattr(run.data, stream)
            for x_0 in latents:
                seen[stream].append(int((data.mean - x_0).flatten(1).norm(dim=1).argmin()))
    return seen


@pytest.mark.parametrize("attackers", [("inner_steps=3",), (MIXTURE,)])
def test_a_run_goes_through_every_set(attackers: tuple[str, ...]) -> None:
    """30 pictures a set and batches of 4. An epoch of a stream is 30 in a row; a mixture's attackers take turns of
    different length, and still nothing is skipped."""
    run = toy_run(toy_settings("replacement=false", "batch_size=4", *attackers))
    seen = pictures_of(run, 30)
    for rows in seen.values():
        for first in range(0, len(rows) - 29, 30):
            assert sorted(rows[first : first + 30]) == list(range(30))
    assert len(seen["inner"]) > len(seen["outer"]) == 120
    assert seen["outer"][:30] != seen["inner"][:30]
    assert seen["related"][:30] != seen["unrelated"][:30]
    with_replacement = pictures_of(toy_run(toy_settings("batch_size=4", *attackers)), 30)
    assert sorted(with_replacement["outer"][:30]) != list(range(30))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_where_a_batch_is_one_picture_both_kinds_are_kept_in_turns(accumulation: int) -> None:
    """Half of one is nothing: related ones at even steps, unrelated ones at odd steps, none of them skipped."""
    run = toy_run(toy_settings("replacement=false", "batch_size=1", f"accumulation={accumulation}"))
    seen = pictures_of(run, 60 // accumulation)
    assert sorted(seen["related"]) == sorted(seen["unrelated"]) == list(range(30))
    assert len(seen["outer"]) == 60


def test_a_resumed_run_draws_what_an_uninterrupted_one_would(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off at step 4, after the state of step 2; with a moving average, whose state is kept, in three parts."""
    overrides = [
        "steps=6", "forget_images=5", "retain_images=5", "bank_trajectories=3", "bank_steps=4", "batch_size=2",
        "checkpoint_every=2", "meta_gradient=first-order", "replacement=false", "accumulation=3", "ema_decay=0.9",
        MIXTURE,
    ]  # fmt: skip
    erase(tiny_model, ["zebra"], out=tmp_path / "whole", overrides=overrides)
    break_at_the_fourth_step(monkeypatch)
    with pytest.raises(RunError, match="step 4"):
        erase(tiny_model, ["zebra"], out=tmp_path / "broken", overrides=overrides)
    monkeypatch.undo()
    erase(tiny_model, ["zebra"], out=tmp_path / "broken", overrides=overrides, resume=True)
    one, two = load_file(tmp_path / "whole" / UNET), load_file(tmp_path / "broken" / UNET)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_latent_is_drawn_around_its_pictures_own_mean_as_widely_as_it_says() -> None:
    """2000 of each of two pictures, of means 1 and -3 and standard deviations 0.5 and 2; noise and latent are apart."""
    mean, std = (torch.tensor(two)[:, None, None, None] for two in ((1.0, -3.0), (0.5, 2.0)))
    cond = Conditioning(torch.zeros(1, 1, 1))
    data = LatentSet(mean=mean, std=std, cond=cond, prompt_of=torch.zeros(2, dtype=torch.int64), timesteps=10)
    batch = data.batch(torch.tensor([1, 0]).repeat(2000), torch.Generator().manual_seed(0))
    second, first = batch.x_0[0::2], batch.x_0[1::2]
    assert (first.mean().item(), first.std().item()) == pytest.approx((1, 0.5), abs=0.05)
    assert (second.mean().item(), second.std().item()) == pytest.approx((-3, 2), abs=0.15)
    of_noise = torch.corrcoef(torch.stack([first.flatten(), batch.eps[1::2].flatten()]))[0, 1]
    assert abs(of_noise.item()) < 0.1
