"""Relearning curves: how an erased concept's score comes back under an attack, and what one number says of it.

K checkpoints at ascending attack steps, each with a score of the concept in percent (lower: it stays erased); N
pictures at each. Between checkpoints a curve is taken as linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Interval, tails, wilson

RESAMPLES = 1000


@dataclass(frozen=True)
class Curve:
    """A score by attack step."""

    steps: tuple[int, ...]
    """Ascending, K."""
    scores: tuple[float, ...]
    """K."""

    def __post_init__(self) -> None:
        if not self.steps or len(self.steps) != len(self.scores):
            raise UserError(
                "No score from no data: a relearning curve needs as many steps as scores (steps=, scores=), at least "
                f"one; got {len(self.steps)} and {len(self.scores)}."
            )
        if list(self.steps) != sorted(set(self.steps)) or not all(math.isfinite(value) for value in self.scores):
            raise UserError(
                f"A relearning curve needs ascending steps and finite scores (steps=, scores=); got {list(self.steps)} "
                f"and {list(self.scores)}."
            )

    @property
    def limit(self) -> int:
        """The last step that was scored."""
        return self.steps[-1]

    def area(self) -> float:
        """The mean height of the curve, ∫ s dt / (t_K - t_1) by trapezoids, in the unit of the score; lower resists
        better. Divided by the length, so that curves of different lengths have one scale, if not one meaning."""
        if len(self.steps) == 1:
            return self.scores[0]
        points = pairwise(zip(self.steps, self.scores, strict=True))
        area = sum((t1 - t0) * (s0 + s1) / 2 for (t0, s0), (t1, s1) in points)
        return area / (self.steps[-1] - self.steps[0])

    def steps_to(self, level: float) -> float | None:
        """The first step at which the curve reaches ``level``; None: not until ``limit``.

        With s₀ < level ≤ s₁ at the steps t₀ and t₁ it is t₀ + (t₁ - t₀) (level - s₀) / (s₁ - s₀).
        """
        if self.scores[0] >= level:
            return float(self.steps[0])
        for (t0, s0), (t1, s1) in pairwise(zip(self.steps, self.scores, strict=True)):
            if s1 >= level:
                return t0 + (t1 - t0) * (level - s0) / (s1 - s0)
        return None


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """What a curve says in numbers, each with the interval that its pictures allow where they were given."""

    area: Interval
    """Mean height in percent."""
    steps_to_half: float | None
    """Steps until half of the original's score is back; None: not within ``limit``."""
    half_low: float | None
    half_high: float | None
    """Ends of its interval; None: not within ``limit``."""
    limit: int


def relearning(
    steps: Sequence[int],
    hits: Tensor,
    original: float,
    generator: torch.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Relearning:
    """The scalars of a curve with bootstrap intervals over pictures.

    ``hits`` (K, N) is 1 where picture n at checkpoint k shows the concept, the same prompts and seeds at each, so that
    a resample takes the same pictures at every checkpoint. ``original`` is the unerased model's score in percent; of
    nothing there is no half. Where all pictures have one and the same curve, the area's interval is what Wilson's says
    of pictures that might have another.
    """
    if hits.ndim != 2 or hits.shape[1] == 0:
        raise UserError(f"Expected hits of K checkpoints by at least one picture (hits=), got {tuple(hits.shape)}.")
    steps = tuple(steps)
    curve = Curve(steps, tuple((100 * hits.double().mean(dim=1)).tolist()))
    n, half = hits.shape[1], original / 2
    picked = torch.randint(n, (resamples, n), generator=generator)
    drawn = 100 * hits[:, picked].double().mean(dim=2)  # (K, resamples)
    value = curve.area()
    own = _areas(steps, 100 * hits.double())
    if own.min() == own.max():  # Resamples of pictures that are all alike say nothing of others.
        other = wilson(0, n, confidence=confidence).high / 100
        low, high = value - other * value, value + other * (100 - value)
    else:
        low, high = _areas(steps, drawn).quantile(tails(confidence)).tolist()
    if original <= 0:
        half = math.inf
    # A resample that does not get there lies beyond any step: infinity sorts it to its place.
    halves = _steps_to(steps, drawn, half).sort().values.tolist()
    ends = [halves[min(round(q * (resamples - 1)), resamples - 1)] for q in tails(confidence).tolist()]
    half_low, half_high = (None if math.isinf(end) else end for end in ends)
    return Relearning(
        area=Interval(value=value, low=min(low, value), high=max(high, value), n=n),
        steps_to_half=curve.steps_to(half),
        half_low=half_low,
        half_high=half_high,
        limit=curve.limit,
    )


def _areas(steps: Sequence[int], scores: Tensor) -> Tensor:
    """:meth:`Curve.area` of each column of ``scores`` (K, R)."""
    if len(steps) == 1:
        return scores[0]
    at = torch.tensor(steps, dtype=scores.dtype)
    return torch.trapezoid(scores, at, dim=0) / (at[-1] - at[0])


def _steps_to(steps: Sequence[int], scores: Tensor, level: float) -> Tensor:
    """:meth:`Curve.steps_to` of each column of ``scores`` (K, R); infinity where it is None."""
    at = torch.tensor(steps, dtype=scores.dtype)
    reached = scores >= level
    first = reached.int().argmax(dim=0)
    before = (first - 1).clamp(min=0)
    s0, s1 = (scores.gather(0, index[None])[0] for index in (before, first))
    rise = torch.where(s1 > s0, (level - s0) / (s1 - s0), torch.ones_like(s0))
    found = torch.where(first == 0, at[0], at[before] + (at[first] - at[before]) * rise)
    return torch.where(reached.any(dim=0), found, torch.full_like(found, math.inf))


def worst_case(curves: Mapping[str, Curve]) -> tuple[str, float]:
    """The attack that brings the most back, and that score.

    An attack counts with its highest score, since an attacker keeps the checkpoint that serves best.
    """
    if not curves:
        raise UserError("The worst case over attacks needs at least one attack (curves=), got none.")
    best = {name: max(curve.scores) for name, curve in curves.items()}
    name = max(best, key=best.__getitem__)
    return name, best[name]


def soonest(curves: Mapping[str, Curve], original: float) -> tuple[str, float] | None:
    """The attack that has half of ``original`` back first, and when; None: none of them gets there, or there is
    nothing to get back."""
    if original <= 0:
        return None
    reached = {name: at for name, curve in curves.items() if (at := curve.steps_to(original / 2)) is not None}
    if not reached:
        return None
    name = min(reached, key=reached.__getitem__)
    return name, reached[name]
