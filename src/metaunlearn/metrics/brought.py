"""Metrics that other packages bring, held to what a metric is: by their class, and by what they hand over."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.metrics.interface import Metric, Pictures, Request, Row
from metaunlearn.metrics.intervals import Score
from metaunlearn.plugins import Group

GROUP = Group("metaunlearn.metrics", "metric", "metrics=, --metrics")
"""Where they are found."""

MAY_READ = ("judge", "concept", "alternative", "prompts")
"""What a class may name in ``reads``: options of the command, and what each picture should show."""


@functools.cache  # Like what was imported of it, for the whole process.
def metric_class(point: EntryPoint) -> Any:
    """The class behind an entry point, which must be a metric's."""
    kind: Any = GROUP.load(point)
    where, reads = GROUP.where(point), getattr(kind, "reads", ())
    lacking = [name for name in ("check", "measure", "score", "own_weights", "reads") if not hasattr(kind, name)]
    if not isinstance(kind, type) or lacking:
        raise UserError(
            f"{where} must be a class with check(), measure(), score(), own_weights() and reads; "
            f"{'it is none' if not lacking else 'it has no ' + ' and no '.join(lacking)}."
        )
    if isinstance(reads, str) or not {*reads} <= {*MAY_READ}:
        raise UserError(f"{where}: reads may hold {', '.join(MAY_READ)}, or nothing; got {reads!r}.")
    return kind


def made_by(name: str, kind: Any) -> Callable[[str | None], Metric]:
    """What makes the metric called ``name`` from its variant, which goes to a ``kind`` that takes an argument."""
    takes_variant = bool(inspect.signature(kind).parameters)

    def make(variant: str | None) -> Metric:
        if not takes_variant and variant is not None:
            raise UserError(f"The metric {name!r} (metrics=, --metrics) has no variants, got {name}:{variant}.")
        return Held(kind(variant) if takes_variant else kind(), name if variant is None else f"{name}:{variant}")

    return make


class Held:
    """A metric of another package, whose rows and score are looked at before they are written."""

    def __init__(self, metric: Any, key: str) -> None:
        self.metric, self.key = metric, key
        self._who = type(metric).__name__

    def check(self, request: Request) -> None:
        self.metric.check(request)

    def measure(self, pictures: Pictures) -> Sequence[Row | None]:
        rows = list(self.metric.measure(pictures))
        count = len(pictures.images)
        if len(rows) != count or not all(row is None or isinstance(row, Mapping) for row in rows):
            raise UserError(
                f"{self._who}.measure() must give a row by name, or None, for each of the {count} pictures; "
                f"got {len(rows)}: {rows[:1]}."
            )
        try:
            json.dumps(rows)
        except TypeError as error:
            raise UserError(f"{self._who}.measure() must give rows of JSON values: {error}.") from None
        return rows

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        score = self.metric.score(rows, request)
        if not isinstance(score, Score):
            raise UserError(
                f"{self._who}.score() must return a metaunlearn.metrics.intervals.Score; got {type(score).__name__}."
            )
        return score

    def own_weights(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.metric.own_weights()
        return found
