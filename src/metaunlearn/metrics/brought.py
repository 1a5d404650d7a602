"""Metrics that other packages bring, held to what a metric is: by their class, and by what they hand over."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint
from typing import Any

from metaunlearn.errors import UserError, first_line
from metaunlearn.metrics.interface import Metric, Pictures, Request, Row
from metaunlearn.metrics.intervals import Score
from metaunlearn.plugins import Group

GROUP = Group("metaunlearn.metrics", "metric", "metrics=, --metrics")
"""Where they are found."""

MAY_READ = ("judge", "concept", "alternative", "prompts")
"""What a class may name in ``reads``: options of the command, and what each picture should show."""
RESERVED = ("file_name", "prompt", "seed", "guidance_scale")
"""Keys of ``raw.jsonl`` that are no metric's."""


def metric_class(point: EntryPoint) -> Any:
    """The class behind an entry point, which must be a metric's."""
    kind: Any = GROUP.load(point)
    where, reads = GROUP.where(point), getattr(kind, "reads", ())
    if point.name in RESERVED or {*":,"} & {*point.name}:
        raise UserError(f"{where} needs another name: {', '.join(RESERVED)} are taken, and : and , mean something.")
    lacking = [name for name in ("check", "measure", "score", "own_weights", "reads") if not hasattr(kind, name)]
    if not isinstance(kind, type) or lacking:
        raise UserError(
            f"{where} must be a class with check(), measure(), score(), own_weights() and reads; "
            f"{'it is none' if not lacking else 'it has no ' + ' and no '.join(lacking)}."
        )
    if not isinstance(reads, Collection) or isinstance(reads, str) or not {*reads} <= {*MAY_READ}:
        raise UserError(f"{where}: reads may hold {', '.join(MAY_READ)}, or nothing; got {reads!r}.")
    return kind


def made_by(name: str, kind: Any) -> Callable[[str | None], Metric]:
    """What makes the metric called ``name`` from its variant, which goes to a ``kind`` that takes an argument."""
    given = inspect.signature(kind).parameters.values()
    takes = next((one for one in given if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)), None)

    def make(variant: str | None) -> Metric:
        called = name if variant is None else f"{name}:{variant}"
        if takes is None and variant is not None:
            raise UserError(f"The metric {name!r} (metrics=, --metrics) has no variants, got {called}.")
        try:
            default = takes is None or takes.default is not takes.empty
            metric = kind() if variant is None and default else kind(variant)
        except UserError:
            raise
        except Exception as error:  # Another package's code, which may fail in any way.
            raise UserError(
                f"The metric {called!r} (metrics=, --metrics) cannot be made: {type(error).__name__}: "
                f"{first_line(error)}."
            ) from error
        return Held(metric, called)

    return make


class Held:
    """A metric of another package, whose rows and score are looked at before they are written."""

    def __init__(self, metric: Any, key: str) -> None:
        self.metric, self.key = metric, key
        self._who = type(metric).__name__

    def check(self, request: Request) -> None:
        self.metric.check(request)

    def measure(self, pictures: Pictures) -> Sequence[Row | None]:
        rows, count = list(self.metric.measure(pictures)), len(pictures.images)
        if len(rows) != count or not all(row is None or isinstance(row, Mapping) for row in rows):
            raise UserError(
                f"{self._who}.measure() must give a row by name, or None, for each of the {count} pictures; "
                f"got {len(rows)}: {rows[:1]}."
            )
        # As a resumed run reads them: keys are text there.
        found: Sequence[Row | None] = self._as_json("measure", rows)
        return found

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        score = self.metric.score(rows, request)
        if not isinstance(score, Score):
            raise UserError(
                f"{self._who}.score() must return a metaunlearn.metrics.intervals.Score; got {type(score).__name__}."
            )
        self._as_json("score", {**score.to_dict(), "raw": [dict(row) for row in score.raw]})
        return score

    def own_weights(self) -> Mapping[str, str]:
        found = self.metric.own_weights()
        if not isinstance(found, Mapping):
            raise UserError(f"{self._who}.own_weights() must return hashes by name, or {{}}; got {found!r}.")
        # By names of its own: a run's request, where they go, has others.
        return {f"{self.key}: {name}": str(found[name]) for name in found}

    def _as_json(self, function: str, value: Any) -> Any:
        try:
            return json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._who}.{function}() must give finite numbers and JSON values: {error}.") from None
