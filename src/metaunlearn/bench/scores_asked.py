"""Whether the scores of a grid's ``prompts`` can be had at all: said before a model is trained for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaunlearn.bench.weights import weights_of
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.registry import code_behind, find, known, reads

if TYPE_CHECKING:
    from metaunlearn.bench.recipe import GridPrompts

PERCENTAGES = ("concept", "related", "unrelated")
"""Names of scores that count pictures."""
LABELLED = frozenset({"accuracy"})
"""Metrics that compare with what every prompt says should be seen."""


def check_scores(sets: Sequence[GridPrompts]) -> None:
    """UserError for scores of one name, of which one would take the other's place, and for metrics that cannot be."""
    of: dict[str, str] = {}
    there = known()
    for one in sets:
        where = f"[[grid.prompts]] {one.name!r}"
        for score in one.scores:
            if score in of:
                raise UserError(
                    f"{where}: {of[score]!r} has a score {score!r} as well, and the tables one column of that name: "
                    "give each a name of its own."
                )
            of[score] = one.name
        metrics = list(one.scores.values())
        if wrong := [score for score in PERCENTAGES if code_behind([one.scores.get(score, "")])]:
            raise UserError(
                f"{where}: scores of the name {wrong[0]!r} are percentages of the pictures in which a judge sees "
                f"something; give {one.scores[wrong[0]]!r} a name of its own."
            )
        for metric in metrics:
            name, _, variant = metric.partition(":")
            if name not in there:
                meant = did_you_mean(name, there)
                raise UserError(f"{where}: there is no metric {metric!r}.{meant} There are: {', '.join(there)}.")
            if weights_of(metric) is None:
                find(name)(variant or None)
        if len({*metrics}) < len(metrics):
            raise UserError(f"{where}: scores hold each metric once; got {', '.join(metrics)}.")
        wanting = [metric for metric in metrics if reads(metric.partition(":")[0], "--reference")]
        if wanting and not one.reference:
            raise UserError(
                f'{where}: {wanting[0]} compares with real pictures. Name them, reference = "NAME", and give them with '
                "--use NAME=DIR."
            )


def check_labels(name: str, metrics: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> None:
    """UserError when the prompts of the set ``name`` do not say what should be seen, and a metric asks that."""
    wanting = [metric for metric in metrics if metric.partition(":")[0] in LABELLED]
    without = [record["text"] for record in prompts if record.get("label") is None]
    if wanting and without:
        raise UserError(
            f"[[grid.prompts]] {name!r}: {wanting[0]} needs a label for every prompt, a column label of its file; "
            f"{without[0]!r} has none."
        )
