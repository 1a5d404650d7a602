"""Paired tests: do two models differ on the same prompts and seeds? Pairing removes what the prompts contribute.

N pictures of each model, picture i of both from the same prompt and seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, tails

RESAMPLES = 1000


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Exact two-sided p-value that N paired yes/no outcomes have the same rate (Q. McNemar, Psychometrika 12, 1947).

    Only the b + c pairs that differ tell anything: under the null each falls to either side with probability 1/2.
    """
    _require_pairs(len(one), len(other))
    only_one = sum(a and not b for a, b in zip(one, other, strict=True))
    only_other = sum(b and not a for a, b in zip(one, other, strict=True))
    return _two_sided(only_one, only_other)


def sign_test(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact two-sided p-value that N paired numbers are as often higher in one as in the other; ties tell nothing."""
    _require_pairs(len(one), len(other))
    higher = sum(a > b for a, b in zip(one, other, strict=True))
    lower = sum(a < b for a, b in zip(one, other, strict=True))
    return _two_sided(higher, lower)


def paired_bootstrap(
    one: Sequence[float],
    other: Sequence[float],
    generator: torch.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of ``one`` less that of ``other``, with its percentile bootstrap interval over pairs.

    A single pair says nothing about its spread and is refused.
    """
    _require_pairs(len(one), len(other))
    n = len(one)
    if n < 2:
        raise UserError("An interval of a difference needs at least 2 pairs of pictures (one=, other=), got 1.")
    differences: Tensor = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    means = torch.stack([differences[torch.randint(n, (n,), generator=generator)].mean() for _ in range(resamples)])
    low, high = means.quantile(tails(confidence)).tolist()
    value = float(differences.mean())
    return Interval(value=value, low=min(low, value), high=max(high, value), n=n)


def _two_sided(b: int, c: int) -> float:
    """2 P(X ≤ min(b, c)) with X binomial of b + c trials and probability 1/2, at most 1."""
    n = b + c
    tail = term = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)  # C(n, k + 1), exactly.
        tail += term
    return min(1.0, 2 * tail / 2**n)


def _require_pairs(one: int, other: int) -> None:
    if one != other or one == 0:
        raise UserError(
            f"A paired test needs the same pictures of both models (one=, other=), at least one; got {one} and {other}."
        )
