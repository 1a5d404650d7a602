"""The Fréchet distance and its interval, against closed forms, slow references and torchmetrics."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from colours import ColourJudge, coloured
from metaunlearn.doctor.meter import Meter
from metaunlearn.metrics import fid
from metaunlearn.metrics.fid import bootstrap_frechet, fid_of_features, fid_score, frechet_distance, too_few


class Features(nn.Module):
    """Eight features of a uint8 image, for torchmetrics and for a judge alike."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(3 * 6 * 6, 8, generator=torch.Generator().manual_seed(5)))

    def forward(self, images: Tensor) -> Tensor:
        return (images.double() / 255).flatten(1) @ self.weight.double()


def test_fid_agrees_with_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    fake = torch.randint(0, 200, (40, 3, 6, 6), generator=generator, dtype=torch.uint8)
    real = torch.randint(50, 256, (30, 3, 6, 6), generator=generator, dtype=torch.uint8)
    features = Features()
    theirs = FrechetInceptionDistance(feature=features, input_img_size=(3, 6, 6))
    theirs.set_dtype(torch.float64)
    theirs.update(fake, real=False)
    theirs.update(real, real=True)
    judge = ColourJudge()
    judge.embed_images = lambda images: features(images * 255)
    score = fid_score(judge, fake.double() / 255, real.double() / 255)
    assert score.value == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert score.value == pytest.approx(frechet_distance(features(fake), features(real)), rel=1e-9)
    assert score.low <= score.value <= score.high
    assert (score.n, score.protocol["n_reference"], score.protocol["feature_dim"]) == (40, 30, 8)
    assert "note" not in score.protocol


def with_moments(mu: Tensor, sigma: Tensor, count: int) -> Tensor:
    """``count`` features of just this mean (D,) and covariance (D, D)."""
    drawn = torch.randn(count, len(mu), generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    white, _ = torch.linalg.qr(drawn - drawn.mean(dim=0))
    return mu + white * (count - 1) ** 0.5 @ torch.linalg.cholesky(sigma).T


@pytest.mark.parametrize(("generated", "real"), [(7, 9), (7, 4), (4, 9), (4, 4)])
def test_distance_of_two_gaussians_in_closed_form(generated: int, real: int) -> None:
    """Diagonal Σ: |μ₁ - μ₂|² + Σ (√s₁ - √s₂)² = 1 + 4 + 0 + (1 - 2)² + (3 - 1)² + 0 = 10. Rotating both changes
    nothing. For Σ that do not commute, scipy's general matrix square root is the reference."""
    mu_1, mu_2 = torch.tensor([0.0, 0, 3]).double(), torch.tensor([1.0, 2, 3]).double()
    sigma_1, sigma_2 = torch.diag(torch.tensor([1.0, 9, 2])).double(), torch.diag(torch.tensor([4.0, 1, 2])).double()
    one, other = with_moments(mu_1, sigma_1, generated), with_moments(mu_2, sigma_2, real)
    assert frechet_distance(one, other) == pytest.approx(10, abs=1e-10)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())
    assert frechet_distance(one @ turn, other @ turn) == pytest.approx(10, abs=1e-10)
    mixed = turn @ sigma_1 @ turn.T
    slow = 5 + np.trace(mixed.numpy() + sigma_2.numpy() - 2 * np.real(sqrtm((mixed @ sigma_2).numpy())))
    assert frechet_distance(with_moments(mu_1, mixed, generated), other) == pytest.approx(float(slow), rel=1e-10)


@pytest.mark.parametrize(("generated", "real"), [(4, 5), (4, 30), (30, 4), (30, 40)])
def test_fewer_images_than_features_give_the_same_distance_as_the_formula(generated: int, real: int) -> None:
    """The trace of the square root is that of all eigenvalues of Σ₁Σ₂, most of which are 0 for few images."""
    one, other = (torch.randn(n, 12, generator=torch.Generator().manual_seed(n)).double() for n in (generated, real))
    sigma_1, sigma_2 = (torch.cov(features.T) for features in (one, other))
    roots = torch.linalg.eigvals(sigma_1 @ sigma_2).real.clamp(min=0).sqrt().sum()
    shift = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
    slow = float(shift + sigma_1.trace() + sigma_2.trace() - 2 * roots)
    assert frechet_distance(one, other) == pytest.approx(slow, rel=1e-6)


def test_equal_sets_are_at_distance_zero_even_with_few_images() -> None:
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 1) == pytest.approx(20, abs=1e-5)


@pytest.mark.parametrize(("generated", "real"), [(7, 5), (9, 40), (40, 30), (30, 10)])
def test_fid_s_interval_is_that_of_resampled_sets(generated: int, real: int) -> None:
    """Counts must give what the plain distance does of images that are really repeated; 12 features."""
    one, other = (torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (generated, real))
    interval = bootstrap_frechet(one, other, torch.Generator().manual_seed(4), resamples=20)
    generator = torch.Generator().manual_seed(4)
    picks = [torch.randint(generated, (generated,), generator=generator) for _ in range(20)]
    slow = torch.tensor([frechet_distance(one[pick], other) for pick in picks], dtype=torch.float64)
    low, high = (slow - slow.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert interval.value == pytest.approx(frechet_distance(one, other), rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((interval.value + low, interval.value + high), rel=1e-7)


def test_of_many_features_the_resamples_are_linearised(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's influence is the derivative of the distance by its weight, here by central differences; and of 600
    images the interval is hardly another for it."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(30, 4, generator=generator) + 0.5, torch.randn(20, 4, generator=generator)
    sample = fid._Sample(one, fid._Target.of(other))
    moved = torch.eye(30, dtype=torch.float64)[:3] - torch.eye(30, dtype=torch.float64)[3:6]  # Still 30 in all.
    slopes = (sample.distances(1 + 1e-4 * moved) - sample.distances(1 - 1e-4 * moved)) / 2e-4
    assert torch.allclose(moved @ sample.influences(), slopes, rtol=1e-5)

    many = torch.randn(600, 4, generator=generator) * 1.2
    exact = fid_of_features(many, other, ColourJudge())
    monkeypatch.setattr(fid, "LARGE", 3)
    linear = fid_of_features(many, other, ColourJudge())
    assert linear.value == exact.value
    assert (linear.low, linear.high) == pytest.approx((exact.low, exact.high), rel=0.02)
    assert (linear.low, linear.high) != (exact.low, exact.high)
    assert "linearised" in linear.protocol["interval"]
    assert "linearised" not in exact.protocol["interval"]


@pytest.mark.skipif(not Meter("cpu").sees_memory, reason="needs Linux")
def test_fid_makes_no_copies_of_all_features_for_a_resample() -> None:
    """Of 30,000 x 256 in float64, 59 MiB, it holds one; a conversion and drawn images that are copied make it six."""
    generator = torch.Generator().manual_seed(0)
    made, real = torch.randn(30_000, 256, generator=generator), torch.randn(300, 256, generator=generator)
    bootstrap_frechet(made[:400], real, generator, resamples=2)  # What the first call loads stays.
    peak = Meter("cpu").peak(lambda: bootstrap_frechet(made, real, generator, resamples=2)) / 2**20
    assert 50 < peak < 200


def test_fid_says_when_it_is_biased(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score = fid_score(ColourJudge(), coloured("red", "blue"), coloured("red", "green", "blue"))
    assert "2 images are no more than the 3 features" in caplog.text
    assert "biased upwards" in score.protocol["note"]
    assert (score.n, score.protocol["n"]) == (2, 2)


def test_few_images_are_resampled_themselves_however_many_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "LARGE", 3)
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(20, 4, generator=generator)
    for n, linear in ((4, False), (5, True)):
        score = fid_of_features(torch.randn(n, 4, generator=generator), real, ColourJudge())
        assert ("linearised" in score.protocol["interval"]) == linear


def test_as_many_images_as_features_are_too_few() -> None:
    """N images leave a covariance of rank N - 1, about their mean."""
    assert torch.linalg.matrix_rank(torch.cov(torch.randn(3, 3, dtype=torch.float64).T)) == 2
    assert too_few(4, 9, 3) is None
    for generated, real in ((3, 9), (9, 3)):
        assert "3 images are no more than the 3 features" in (too_few(generated, real, 3) or "")
