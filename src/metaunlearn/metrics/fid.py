"""Fréchet distance between the features of generated and of reference images. At least 0; lower is better.

N images, D features. Everything in float64: the distance is a difference of large, nearly equal traces.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, Score, score, tails
from metaunlearn.metrics.judge import Judge

RESAMPLES = 200

logger = logging.getLogger(__name__)


def fid_score(judge: Judge, images: Tensor, reference: Tensor, *, seed: int = 0) -> Score:
    """Fréchet distance of ``images`` to ``reference``, both (N, 3, H, W) in [0, 1], on the judge's image features.

    The features are the judge's, so this is comparable to an Inception FID in its direction only. ``seed`` is that of
    the bootstrap.
    """
    require_pairs(len(images), "the generated images")
    require_pairs(len(reference), "the reference images (--reference)")
    return fid_of_features(judge.embed_images(images), judge.embed_images(reference), judge, seed=seed)


def fid_of_features(generated: Tensor, real: Tensor, judge: Judge, *, seed: int = 0) -> Score:
    """The same from features of ``judge``: ``generated`` (N, D), ``real`` (R, D)."""
    generated, real = generated.double(), real.double()
    protocol: dict[str, object] = {
        "metric": "fid",
        "unit": "squared feature distance",
        "judge": judge.name,
        "judge_weights": judge.fingerprint,
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


def frechet_distance(features_1: Tensor, features_2: Tensor) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 √(Σ₁Σ₂)) of features (N₁, D), (N₂, D) (M. Heusel et al., NeurIPS 2017, Eq. 6)."""
    return gaussian_distance(*moments(features_1), *moments(features_2))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    mu = features.mean(dim=0)
    centred = features - mu
    return mu, centred.T @ centred / (len(features) - 1)


def gaussian_distance(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor) -> float:
    """Squared 2-Wasserstein distance of N(μ₁, Σ₁) and N(μ₂, Σ₂); μ (D,), Σ (D, D)."""
    return _distance(mu_1, sigma_1, mu_2, sigma_2, _square_root(sigma_2))


def _distance(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor, root_2: Tensor) -> float:
    # √(Σ₁Σ₂) has the eigenvalues' square roots of Σ₂^½ Σ₁ Σ₂^½, which is symmetric: no complex square root is needed.
    eigenvalues = torch.linalg.eigvalsh(root_2 @ sigma_1 @ root_2)
    trace_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (mu_1 - mu_2).square().sum() + sigma_1.trace() + sigma_2.trace() - 2 * trace_root
    # Rounding can leave equal sets a little below 0.
    return max(float(distance), 0.0)


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
    mu, sigma = moments(real)
    root = _square_root(sigma)
    value = _distance(*moments(generated), mu, sigma, root)
    n = len(generated)
    draws = torch.tensor(
        [
            _distance(*moments(generated[torch.randint(n, (n,), generator=generator)]), mu, sigma, root)
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    low, high = (draws - draws.mean()).quantile(tails(confidence)).tolist()
    return Interval(value=value, low=max(value + min(low, 0.0), 0.0), high=value + max(high, 0.0), n=n)
