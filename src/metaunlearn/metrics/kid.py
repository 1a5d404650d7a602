"""Kernel distance between the features of generated and of reference images (KID). Around 0 for equal distributions,
where it may fall below 0; lower is better.

N generated and R reference images, D features. It is the unbiased estimate of a squared maximum mean discrepancy, so
that unlike FID it can be compared at different numbers of images. All pairs are used rather than random subsets of
them, which gives the mean that subsets only approach. Everything in float64, kernel rows a block at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metaunlearn.metrics.fid import Source, require_pairs
from metaunlearn.metrics.intervals import Interval, Score, score, tails

RESAMPLES = 200
BLOCK = 1024
"""Kernel rows in memory at a time."""


def kid_of_features(generated: Tensor, real: Tensor, source: Source, *, seed: int = 0) -> Score:
    """KID from features of ``source``: ``generated`` (N, D), ``real`` (R, D); ``seed`` is that of the bootstrap."""
    require_pairs(len(generated), "the generated images (--images)", "KID")
    require_pairs(len(real), "the reference images (--reference)", "KID")
    return score(
        bootstrap_kernel_distance(generated.double(), real.double(), torch.Generator().manual_seed(seed)),
        protocol={
            "metric": "kid",
            "unit": "squared maximum mean discrepancy",
            "judge": source.name,
            "judge_weights": source.fingerprint,
            "rule": "kernel (x.y / D + 1)^3, unbiased over all pairs",
            "feature_dim": generated.shape[1],
            "n_reference": len(real),
            "interval": "bootstrap over generated images around the estimate, reference fixed",
        },
    )


def kernel_distance(generated: Tensor, real: Tensor) -> float:
    """The unbiased MMD² of features (N, D) and (R, D) (A. Gretton et al., JMLR 13, 2012, Eq. 3; M. Bińkowski et al.,
    ICLR 2018): mean of k over pairs within each set, less twice its mean across."""
    n, r = len(generated), len(real)
    within = _row_sums(generated, generated).sum() - _diagonal(generated).sum()
    across = _row_sums(generated, real).sum()
    return float(within / (n * (n - 1)) - 2 * across / (n * r) + _mean_over_pairs(real))


def bootstrap_kernel_distance(
    generated: Tensor, real: Tensor, generator: torch.Generator, *, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """The distance, and the spread that drawing other images would make.

    Resample b takes image i w_bi times, Σ_i w_bi = N, so that its pairs sum to w_bᵀ K w_b less the N pairs of an image
    with itself. As with FID, the spread of the resamples around their own mean is put around the estimate.
    """
    n, r = len(generated), len(real)
    picks = torch.stack([torch.randint(n, (n,), generator=generator) for _ in range(resamples)])
    weights = torch.stack([row.bincount(minlength=n) for row in picks]).double()
    pairs = torch.zeros(resamples, dtype=torch.float64)
    for first in range(0, n, BLOCK):
        rows = slice(first, first + BLOCK)
        pairs += (weights[:, rows] * (kernel(generated[rows], generated) @ weights.T).T).sum(dim=1)
    within = pairs - weights @ _diagonal(generated)
    across = weights @ _row_sums(generated, real)
    draws = within / (n * (n - 1)) - 2 * across / (n * r)
    low, high = (draws - draws.mean()).quantile(tails(confidence)).tolist()
    value = kernel_distance(generated, real)
    return Interval(value=value, low=value + min(low, 0.0), high=value + max(high, 0.0), n=n)


def kernel(one: Tensor, other: Tensor) -> Tensor:
    """(x·y / D + 1)³ of features (N, D) and (R, D), (N, R)."""
    return (one @ other.T / one.shape[1] + 1) ** 3


def _mean_over_pairs(features: Tensor) -> Tensor:
    n = len(features)
    return (_row_sums(features, features).sum() - _diagonal(features).sum()) / (n * (n - 1))


def _row_sums(one: Tensor, other: Tensor) -> Tensor:
    """Σ_j k(x_i, y_j), (N,)."""
    return torch.cat([kernel(block, other).sum(dim=1) for block in one.split(BLOCK)])


def _diagonal(features: Tensor) -> Tensor:
    """k(x_i, x_i), (N,)."""
    return (features.square().sum(dim=1) / features.shape[1] + 1) ** 3
