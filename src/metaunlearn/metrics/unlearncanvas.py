"""UA, IRA and CRA: accuracies on three kinds of prompts, after UnlearnCanvas (Y. Zhang et al., NeurIPS 2024).

An erased style: the other styles are *in-domain*, the objects *cross-domain*; an erased object the other way round.
Each prompt has a ``role`` and the label that its images should have; the judge chooses among the labels of that domain:
the erased and the in-domain ones together for UA and IRA, the cross-domain ones for CRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from metaunlearn.errors import UserError
from metaunlearn.metrics.concept import judged_protocol, vocabulary_of, with_rest
from metaunlearn.metrics.intervals import Interval, Score, require_data, score, wilson
from metaunlearn.metrics.judge import Judge

Role = Literal["erased", "in-domain", "cross-domain"]
ROLES: tuple[Role, ...] = get_args(Role)
CROSS = "cross-domain:"
"""Before an alternative of the cross-domain labels."""


class Accuracy(NamedTuple):
    """One of the three."""

    role: Role
    """The prompts it is measured on."""
    missed: bool
    """Whether it counts the images in which the label is *not* seen."""
    rule: str


ACCURACIES = {
    "ua": Accuracy("erased", True, "images of the erased concept in which the judge does not see it"),
    "ira": Accuracy("in-domain", False, "images of its kind in which the judge sees their label"),
    "cra": Accuracy("cross-domain", False, "images of the other kind in which the judge sees their label"),
}
"""Unlearning, in-domain retain and cross-domain retain accuracy, in percent; of all three higher is better."""


def unlearncanvas_score(
    name: str, saw: Sequence[str], labels: Sequence[str], judge: Judge, choices: Sequence[str]
) -> Score:
    """``ua``, ``ira`` or ``cra`` from what ``judge`` saw among ``choices`` in the N images of that role."""
    accuracy = ACCURACIES[name]
    require_data(len(saw), f"{name.upper()} (prompts with the role {accuracy.role!r})")
    right = sum(seen == label for seen, label in zip(saw, labels, strict=True))
    return score(
        _complement(wilson(right, len(saw))) if accuracy.missed else wilson(right, len(saw)),
        protocol={**judged_protocol(name, judge, choices), "rule": accuracy.rule},
        raw=[{"saw": seen, "label": label} for seen, label in zip(saw, labels, strict=True)],
    )


class Alternatives(NamedTuple):
    """What a judge may see instead of the labels."""

    own: list[str]
    """In the erased concept's domain."""
    cross: list[str]
    """In the other domain."""

    @classmethod
    def split(cls, given: Sequence[str]) -> Alternatives:
        """``["axe", "cross-domain:noto"]``, as ``--alternative`` says them."""
        return cls(
            [text for text in given if not text.startswith(CROSS)],
            [text.removeprefix(CROSS).strip() for text in given if text.startswith(CROSS)],
        )


def looked_for(concept: str | None, alternatives: Sequence[str]) -> list[str]:
    """What a judge of the concept has to tell apart: it and the alternatives of its own domain; nothing without it."""
    return [] if concept is None else [concept, *Alternatives.split(alternatives).own]


def domain_choices(
    name: str, labels: Sequence[str], roles: Sequence[str | None], alternatives: Sequence[str], judge: Judge
) -> list[str]:
    """What ``judge`` chooses among for the metric ``name``: the labels of its domain, and what else it may see there.

    ``labels`` and ``roles`` are those of the images. Else it may see the ``alternatives`` of that domain or, where none
    are named, the rest of its vocabulary; a judge without one chooses among the labels alone.
    """
    cross = ACCURACIES[name].role == "cross-domain"
    own = [label for label, role in zip(labels, roles, strict=True) if (role == "cross-domain") == cross]
    named = list(dict.fromkeys(own))
    split = Alternatives.split(alternatives)
    others = split.cross if cross else split.own
    if others:
        return list(dict.fromkeys([*named, *others]))
    vocabulary = vocabulary_of(judge, named)
    if vocabulary is not None:
        return with_rest(named, vocabulary)
    if len(named) < 2:
        kind, option = ("cross-domain", f"{CROSS}TEXT") if cross else ("erased and in-domain", "TEXT")
        raise UserError(
            f"The metric {name!r} has one label to choose from, {named[0]!r}: the judge {judge.name} (--judge) has no "
            f"vocabulary with it. Give prompts with other {kind} labels, or say what else it may see: "
            f"alternatives=[...] (--alternative {option}, repeatable)."
        )
    return named


def check_roles(roles: Sequence[str | None], name: str) -> None:
    """UserError unless every prompt has a known role and one has the role that ``name`` is measured on."""
    unknown = sorted({str(role) for role in roles if role not in ROLES})
    if unknown:
        raise UserError(
            f"The metric {name!r} needs a role for every prompt, one of {', '.join(ROLES)}, in a column 'role' of "
            f"--prompts (prompts=); got {unknown[0]}."
        )
    if ACCURACIES[name].role not in roles:
        raise UserError(
            f"No score from no data: the metric {name!r} needs prompts (prompts=, --prompts) with the role "
            f"{ACCURACIES[name].role!r}, got none."
        )


def _complement(interval: Interval) -> Interval:
    return Interval(value=100 - interval.value, low=100 - interval.high, high=100 - interval.low, n=interval.n)
