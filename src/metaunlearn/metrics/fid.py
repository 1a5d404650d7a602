"""Fréchet distance between the features of generated and of reference images. At least 0; lower is better.

N generated and R reference images, D features. Everything in float64, the distance being a difference of large, nearly
equal traces; features stay as they come and are converted some rows at a time, since of Inception's float64 is large.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, Score, score, tails
from metaunlearn.metrics.judge import Judge

RESAMPLES = 200
ROWS = 1024
"""Images in float64 at a time."""
LARGE = 1024
"""Eigenvalues of more rows than this, as of Inception's 2,048 features, take too long for every resample."""
RANK = 1e-12
"""Eigenvalues of less than this part of the largest are rounding."""

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Whose features they are: a judge's or Inception's."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        ...


def fid_score(judge: Judge, images: Tensor, reference: Tensor, *, seed: int = 0) -> Score:
    """Fréchet distance of ``images`` to ``reference``, both (N, 3, H, W) in [0, 1], on the judge's image features.

    The features are the judge's, so this is comparable to an Inception FID in its direction only. ``seed`` is that of
    the bootstrap.
    """
    require_pairs(len(images), "the generated images")
    require_pairs(len(reference), "the reference images (--reference)")
    return fid_of_features(judge.embed_images(images), judge.embed_images(reference), judge, seed=seed)


def fid_of_features(generated: Tensor, real: Tensor, source: Source, *, seed: int = 0) -> Score:
    """The same from features of ``source``: ``generated`` (N, D), ``real`` (R, D)."""
    linear = _linear(len(generated), _rank(real))
    protocol: dict[str, object] = {
        "metric": "fid",
        "unit": "squared feature distance",
        "judge": source.name,
        "judge_weights": source.fingerprint,
        "rule": "Fréchet distance of two Gaussians, unbiased covariances",
        "feature_dim": generated.shape[1],
        "n": len(generated),
        "n_reference": len(real),
        "interval": f"bootstrap over generated images{' of the linearised distance' if linear else ''} "
        "around the estimate, reference fixed",
    }
    note = too_few(len(generated), len(real), generated.shape[1])
    if note is not None:
        logger.warning("FID: %s", note)
        protocol["note"] = note
    return score(bootstrap_frechet(generated, real, torch.Generator().manual_seed(seed)), protocol=protocol)


def require_pairs(n: int, what: str, metric: str = "FID") -> None:
    """A covariance, as an unbiased mean over pairs, needs two images."""
    if n < 2:
        raise UserError(f"{metric} needs at least 2 images on each side; {what} are {n}. No score from no data.")


def too_few(generated: int, real: int, features: int) -> str | None:
    """What to say when the images are no more than the features: D or fewer leave a D x D covariance singular.

    None when there are enough.
    """
    fewest = min(generated, real)
    if fewest > features:
        return None
    return (
        f"{fewest} images are no more than the {features} features: "
        "the estimate is biased upwards; compare only at equal numbers of images"
    )


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 √(Σ₁Σ₂)) of features (N, D), (R, D) (M. Heusel et al., NeurIPS 2017, Eq. 6).

    Σ are unbiased covariances.
    """
    return float(_Sample(generated, _Target.of(real)).distances(_once(len(generated))))


def bootstrap_frechet(
    generated: Tensor, real: Tensor, generator: torch.Generator, *, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """The distance of ``generated`` (N, D) to ``real`` (R, D), and the spread that drawing other images would make.

    A resample repeats images, so its distance is biased further upwards than the estimate. The spread of the
    resamples around their own mean is therefore put around the estimate. It tells of noise, not of the bias.

    Where N > min(R, D) > ``LARGE``, the first-order change of the distance takes the place of a resample's own distance
    (L. A. Jaeckel's infinitesimal jackknife, 1972).
    """
    sample = _Sample(generated, _Target.of(real))
    n = len(generated)
    picks = (torch.randint(n, (n,), generator=generator) for _ in range(resamples))
    weights = torch.stack([pick.bincount(minlength=n) for pick in picks]).double()
    linear = _linear(n, _rank(real))
    draws = weights @ sample.influences() if linear else sample.distances(weights)
    value = float(sample.distances(_once(n)))
    low, high = (draws - draws.mean()).quantile(tails(confidence)).tolist()
    return Interval(value=value, low=max(value + min(low, 0.0), 0.0), high=value + max(high, 0.0), n=n)


class _Target(NamedTuple):
    """The Gaussian of R features, to which others are compared."""

    mu: Tensor
    """μ₂, (D,)."""
    factor: Tensor
    """F₂ with F₂ᵀF₂ = Σ₂, (K, D) with K = min(R, D)."""

    @classmethod
    def of(cls, real: Tensor) -> _Target:
        mu, scale = _mean(real), (len(real) - 1) ** 0.5
        if len(real) <= real.shape[1]:
            return cls(mu, (real.double() - mu) / scale)
        sigma = real.new_zeros(real.shape[1], real.shape[1], dtype=torch.float64)
        for part in _rows(real):
            centred = (real[part].double() - mu) / scale
            sigma += centred.T @ centred
        return cls(mu, _square_root(sigma))


class _Sample:
    """N images beside a target, each counted any number of times: a resample is counts, not a copy of its images.

    With F₁ᵀF₁ = Σ₁, tr √(Σ₁Σ₂) is the sum of the singular values of F₁F₂ᵀ: no complex square root is needed. They are
    those of the smaller of its two Gram matrices: few images are quick, however many the features.
    """

    def __init__(self, generated: Tensor, target: _Target) -> None:
        self.generated, self.target = generated, target
        self.mu = _mean(generated)
        self.squares = generated.new_empty(len(generated), dtype=torch.float64)
        """|x - μ|² of each image, (N,)."""
        self.seen = generated.new_empty(len(generated), len(target.factor), dtype=torch.float64)
        """What F₂ sees of each, F₂(x - μ), (N, K)."""
        for part in _rows(generated):
            centred = generated[part].double() - self.mu
            self.squares[part] = centred.square().sum(dim=1)
            self.seen[part] = centred @ target.factor.T
        self.gram = self.seen @ self.seen.T if len(generated) < len(target.factor) else None

    def distances(self, counts: Tensor) -> Tensor:
        """(B,), of resamples that have each image as often as ``counts`` (B, N) says, N images in all."""
        n = len(self.generated)
        parts = [counts[:, part] @ (self.generated[part].double() - self.mu) for part in _rows(self.generated)]
        shift = torch.stack(parts).sum(dim=0) / n
        trace = (counts @ self.squares - n * shift.square().sum(dim=1)) / (n - 1) + self.target.factor.square().sum()
        roots = torch.stack([self._squared(row).clamp(min=0).sqrt().sum() for row in counts])
        away = (self.mu + shift - self.target.mu).square().sum(dim=1)
        # Rounding can leave equal sets a little below 0.
        return (away + trace - 2 * roots).clamp(min=0)

    def _squared(self, counts: Tensor) -> Tensor:
        """The squared singular values of a resample's F₁F₂ᵀ, ``counts`` (N,)."""
        n = len(self.generated)
        if self.gram is None:
            return torch.linalg.eigvalsh(self._moment(counts))
        # Images that were not drawn have rows of zeros.
        drawn = counts > 0
        weight, with_mean = counts[drawn].sqrt(), self.gram @ counts / n
        centred = self.gram[drawn][:, drawn] - with_mean[drawn] - with_mean[drawn, None] + counts @ with_mean / n
        return torch.linalg.eigvalsh(centred * weight * weight[:, None] / (n - 1))

    def _moment(self, counts: Tensor) -> Tensor:
        """F₂Σ₁F₂ᵀ of a resample, (K, K)."""
        n = len(self.generated)
        mean = counts @ self.seen / n
        moment = -n * torch.outer(mean, mean)
        for part in _rows(self.seen):
            moment += (self.seen[part] * counts[part, None]).T @ self.seen[part]
        return moment / (n - 1)

    def influences(self) -> Tensor:
        """By how much each image drawn once more changes the distance, to first order, (N,), but for a constant.

        With d = x - μ and s = F₂d it is 2 dᵀ(μ - μ₂) / N + (|d|² - sᵀ (F₂Σ₁F₂ᵀ)^(-1/2) s) / (N - 1).
        """
        n = len(self.generated)
        eigenvalues, vectors = torch.linalg.eigh(self._moment(_once(n)[0]))
        # What no image moves has no inverse, and no part in this.
        kept = eigenvalues > eigenvalues[-1] * RANK
        found = torch.empty_like(self.squares)
        for part in _rows(self.generated):
            along = (self.generated[part].double() - self.mu) @ (self.mu - self.target.mu)
            roots = (self.seen[part] @ vectors[:, kept]).square() @ eigenvalues[kept].rsqrt()
            found[part] = 2 * along / n + (self.squares[part] - roots) / (n - 1)
        return found


def _once(n: int) -> Tensor:
    """The counts of the sample itself, (1, N)."""
    return torch.ones(1, n, dtype=torch.float64)


def _rank(real: Tensor) -> int:
    """K, the rows of the target's factor."""
    return min(real.shape)


def _linear(n: int, rank: int) -> bool:
    """Whether the resamples of N images get linearised distances."""
    return n > rank > LARGE


def _mean(features: Tensor) -> Tensor:
    """(D,), in float64."""
    return torch.stack([features[part].double().sum(dim=0) for part in _rows(features)]).sum(dim=0) / len(features)


def _rows(features: Tensor) -> Iterator[slice]:
    """The rows of ``features``, some at a time."""
    return (slice(first, first + ROWS) for first in range(0, len(features), ROWS))


def _square_root(sigma: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    eigenvalues, vectors = torch.linalg.eigh(sigma)
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root
