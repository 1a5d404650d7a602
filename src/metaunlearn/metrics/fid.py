"""Fréchet distance between the features of generated and of reference images. At least 0; lower is better.

N images, D features. Everything in float64: the distance is a difference of large, nearly equal traces.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, Score, score, tails
from metaunlearn.metrics.judge import Judge

RESAMPLES = 200

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
    generated, real = generated.double(), real.double()
    protocol: dict[str, object] = {
        "metric": "fid",
        "unit": "squared feature distance",
        "judge": source.name,
        "judge_weights": source.fingerprint,
        "rule": "Fréchet distance of two Gaussians, unbiased covariances",
        "feature_dim": generated.shape[1],
        "n": len(generated),
        "n_reference": len(real),
        "interval": "bootstrap over generated images around the estimate, reference fixed",
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
    """What to say of fewer images than features, which leave the covariance singular; None when there are enough."""
    fewest = min(generated, real)
    if fewest >= features:
        return None
    return (
        f"{fewest} images are fewer than the {features} features: "
        "the estimate is biased upwards; compare only at equal numbers of images"
    )


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 √(Σ₁Σ₂)) of features (N, D), (R, D) (M. Heusel et al., NeurIPS 2017, Eq. 6).

    Σ are unbiased covariances.
    """
    generated = generated.double()
    target = _Target.of(real)
    return target.distance(generated, generated @ target.factor.T)


class _Target(NamedTuple):
    """The Gaussian of R features, to which others are compared."""

    mu: Tensor
    """μ₂, (D,)."""
    factor: Tensor
    """F₂ with F₂ᵀF₂ = Σ₂, (min(R, D), D)."""

    @classmethod
    def of(cls, real: Tensor) -> _Target:
        real = real.double()
        mu = real.mean(dim=0)
        rows = (real - mu) / (len(real) - 1) ** 0.5
        return cls(mu, rows if len(rows) <= rows.shape[1] else _square_root(rows.T @ rows))

    def distance(self, generated: Tensor, seen: Tensor) -> float:
        """From features (N, D) and what F₂ sees of them, ``generated @ factor.T``.

        With F₁ᵀF₁ = Σ₁, tr √(Σ₁Σ₂) is the sum of the singular values of F₁F₂ᵀ: no complex square root is needed.
        """
        scale = (len(generated) - 1) ** 0.5
        mu = generated.mean(dim=0)
        trace = ((generated - mu) / scale).square().sum() + self.factor.square().sum()
        trace_root = _sum_of_singular_values((seen - seen.mean(dim=0)) / scale)
        # Rounding can leave equal sets a little below 0.
        return max(float((mu - self.mu).square().sum() + trace - 2 * trace_root), 0.0)


def _sum_of_singular_values(matrix: Tensor) -> Tensor:
    """Through the smaller of its two Gram matrices: few images are quick, however many the features."""
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()


def _square_root(sigma: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    eigenvalues, vectors = torch.linalg.eigh(sigma)
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root


def bootstrap_frechet(
    generated: Tensor, real: Tensor, generator: torch.Generator, *, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """The distance of ``generated`` (N, D) to ``real`` (R, D), and the spread that drawing other images would make.

    A resample repeats images, so its distance is biased further upwards than the estimate. The spread of the
    resamples around their own mean is therefore put around the estimate. It tells of noise, not of the bias.
    """
    target = _Target.of(real)
    seen = generated @ target.factor.T
    n = len(generated)
    picks = [torch.randint(n, (n,), generator=generator) for _ in range(resamples)]
    draws = torch.tensor([target.distance(generated[pick], seen[pick]) for pick in picks], dtype=torch.float64)
    value = target.distance(generated, seen)
    low, high = (draws - draws.mean()).quantile(tails(confidence)).tolist()
    return Interval(value=value, low=max(value + min(low, 0.0), 0.0), high=value + max(high, 0.0), n=n)
