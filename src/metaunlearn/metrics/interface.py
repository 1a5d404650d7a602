"""What a metric is to an evaluation: measured picture by picture while they are made, then a score from what was kept.

B pictures in a batch, D features. A metric is measured on one batch at a time and leaves either a small JSON row for
each picture or, for distances between sets (``distance.py``), its features, so that the pictures themselves need not be
held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from metaunlearn.draws import Depicted
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.reference import Reference

Row = Mapping[str, Any]
"""What a metric keeps of one picture, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a metric may need beside the images."""

    judge: Judge
    draws: Sequence[Depicted]
    """One an image."""
    concept: str | None
    alternatives: Sequence[str]
    reference: Reference | None
    seed: int
    """Of the bootstraps."""
    device: str = "cpu"
    """Where a metric's own model runs; the judge has its own."""


@dataclass(kw_only=True)
class Pictures:
    """One batch, and what was already found on it."""

    images: Tensor
    """(B, 3, H, W) in [0, 1]."""
    draws: Sequence[Depicted]
    request: Request

    @cached_property
    def features(self) -> Tensor:
        """Of the judge, (B, D)."""
        return self.request.judge.embed_images(self.images)


class Metric(Protocol):
    """A metric between the command line and its own file."""

    @property
    def key(self) -> str:
        """Its name in ``raw.jsonl``; metrics with the same key keep the same rows, which are measured once."""
        ...

    def check(self, request: Request) -> None:
        """Refuse, before images are made, what cannot be measured."""
        ...

    def measure(self, pictures: Pictures) -> Sequence[Row | None]:
        """A row for each picture of a batch; None where the metric does not concern it."""
        ...

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        """From the rows that are not None, in order."""
        ...

    def own_weights(self) -> Mapping[str, str]:
        """SHA-256 of models that it brings, once checked, by their name in an evaluation's record."""
        ...
