"""Scores, each with the interval that its sample size allows and the protocol under which it was taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from metaunlearn.errors import UserError

RESAMPLES = 1000
"""Bootstrap resamples of a mean."""


@dataclass(frozen=True)
class Interval:
    """An estimate and where the truth may lie; all in the unit of the score."""

    value: float
    low: float
    high: float
    n: int
    """How many images it rests on."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """An interval, what was measured and how, and the measurement of every image."""

    value: float
    low: float
    high: float
    n: int
    protocol: Mapping[str, Any]
    """What has to be equal for two scores to be comparable, and what is needed to repeat the measurement."""
    raw: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """One mapping an image, from which another rule can be applied; empty where a score belongs to the set only."""

    def to_dict(self) -> dict[str, Any]:
        """The object that stands in ``results.json``."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "protocol": dict(self.protocol),
        }

    def stamped(self, **facts: Any) -> Score:
        """The same score with more facts in its protocol."""
        return replace(self, protocol={**self.protocol, **facts})


def score(
    interval: Interval, *, protocol: Mapping[str, Any], raw: Sequence[Mapping[str, Any]] = (), confidence: float = 0.95
) -> Score:
    """Join an interval with its protocol."""
    return Score(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        protocol={**protocol, "confidence": confidence},
        raw=tuple(raw),
    )


def require_data(n: int, what: str) -> None:
    """No score from no data: an empty set is an error, never 0."""
    if n == 0:
        raise UserError(f"No score from no data: {what} needs at least one image, got none.")


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion, in percent (E. B. Wilson, JASA 22, 1927).

    centre ± half, with z the normal quantile and p = successes / n:
    centre = (p + z²/2n) / (1 + z²/n),  half = z √(p(1-p)/n + z²/4n²) / (1 + z²/n).
    Sensible at 0 and n successes, where the textbook interval has no width.
    """
    require_data(n, "a percentage")
    if not 0 <= successes <= n:
        raise ValueError(f"Expected between 0 and n={n} successes, got {successes}.")
    z = _quantile(confidence)
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # At 0 and n successes one end is the value itself, which rounding must not put outside.
    low, high = min(centre - half, p), max(centre + half, p)
    return Interval(value=100 * p, low=100 * max(low, 0.0), high=100 * min(high, 1.0), n=n)


def bootstrap_mean(
    values: Tensor,
    generator: torch.Generator,
    *,
    bounds: tuple[float, float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of ``values`` (n,) with its percentile bootstrap interval (B. Efron, Ann. Statist. 7, 1979).

    One value says nothing about its spread: the interval is then all of ``bounds``, the range that a score can take.
    """
    values = values.detach().cpu().double()
    n = len(values)
    require_data(n, "a mean")
    mean = float(values.mean())
    if n == 1:
        return Interval(value=mean, low=bounds[0], high=bounds[1], n=1)
    means = torch.stack([values[torch.randint(n, (n,), generator=generator)].mean() for _ in range(resamples)])
    low, high = means.quantile(tails(confidence)).tolist()
    return Interval(value=mean, low=min(low, mean), high=max(high, mean), n=n)


def tails(confidence: float) -> Tensor:
    """The two quantiles between which a share of ``confidence`` lies, (2,) float64."""
    _quantile(confidence)
    return torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence lies between 0 and 1, got {confidence}.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


RUN_FACTS = frozenset({"seed", "seeds", "bootstrap_seed", "note", "trial"})
"""What may differ between two scores that are still of one kind.

``seed`` is of an attack's own draws, ``trial`` the one that a search found strongest.
"""


def comparable(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a protocol that two scores must share to stand beside each other.

    A judge is known by its weights; what its folder is called matters only where there are none.
    """
    skipped = RUN_FACTS | {"judge"} if "judge_weights" in protocol else RUN_FACTS
    return {key: value for key, value in protocol.items() if key not in skipped}


def require_same_protocol(scores: Sequence[Score]) -> None:
    """Refuse to compare scores whose judge, rule, prompts or settings differ; seeds may."""
    for other in scores[1:]:
        first, second = comparable(scores[0].protocol), comparable(other.protocol)
        differing = [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]
        if differing:
            told = "; ".join(f"{key}: {first.get(key)!r} and {second.get(key)!r}" for key in differing)
            raise UserError(f"Scores of different protocols cannot be compared ({told}). Evaluate both the same way.")
