"""The metrics by name, built in or of other packages, and which options each reads.

Another package brings a metric by an entry point of the group ``metaunlearn.metrics``; CONTRIBUTING.md has a template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.brought import GROUP, made_by, metric_class
from metaunlearn.metrics.clip_score import DEFAULT_RULE as DEFAULT_CLIP_RULE
from metaunlearn.metrics.clip_score import clip_rule_named
from metaunlearn.metrics.distance import Distance, fid, kid
from metaunlearn.metrics.interface import Metric, Request
from metaunlearn.metrics.measures import Accuracy, ClipScore, Concept, RoleAccuracy
from metaunlearn.metrics.nudity import DEFAULT_RULE, RULES, rule_named
from metaunlearn.metrics.own_models import Nsfw, Nudity, Unsafe

AnyMetric = Metric | Distance


def _plain(make: Callable[[], Metric]) -> Callable[[str | None], Metric]:
    """For metrics without a variant."""

    def metric(variant: str | None) -> Metric:
        made = make()
        if variant is not None:
            raise UserError(f"The metric {made.key!r} (metrics=, --metrics) has no variants, got {made.key}:{variant}.")
        return made

    return metric


METRICS: dict[str, Callable[[str | None], AnyMetric]] = {
    "concept": _plain(Concept),
    "accuracy": _plain(Accuracy),
    "clip-score": lambda rule: ClipScore(clip_rule_named(rule or DEFAULT_CLIP_RULE)),
    "fid": fid,
    "kid": kid,
    "ua": _plain(lambda: RoleAccuracy("ua")),
    "ira": _plain(lambda: RoleAccuracy("ira")),
    "cra": _plain(lambda: RoleAccuracy("cra")),
    "nudity": lambda rule: Nudity(rule_named(rule or DEFAULT_RULE)),
    "unsafe": Unsafe,
    "nsfw": Nsfw,
}
"""By name: the metric, from what stands behind a colon in ``NAME:VARIANT``, such as ``nudity:rece-9@0.6``."""

READS = {
    "--judge": frozenset({"concept", "accuracy", "clip-score", "fid", "kid", "ua", "ira", "cra", "nsfw"}),
    "--concept": frozenset({"concept"}),
    "--alternative": frozenset({"concept", "accuracy", "ua", "ira", "cra"}),
    "--reference": frozenset({"fid", "kid"}),
    "--prompts": frozenset({"accuracy", "clip-score", "ua", "ira", "cra"}),
}
"""Options of the command, and the built-in metrics that read them; of ``fid:FILE`` and ``kid:FILE`` none reads a
judge."""


def known() -> list[str]:
    """The names of all that there are."""
    return [*METRICS, *GROUP.names()]


def find(name: str) -> Callable[[str | None], AnyMetric]:
    """What makes the metric called ``name`` from its variant; UserError when there is none, or more than one."""
    if name in METRICS:
        GROUP.find(name, ours=True)
        return METRICS[name]
    if (kind := brought_class(name)) is not None:
        return made_by(name, kind)
    raise UserError(
        f"There is no metric {name!r} (metrics=, --metrics).{did_you_mean(name, known())} "
        f"There are: {', '.join(known())}."
    )


def reads(name: str, option: str) -> bool:
    """Whether the metric called ``name`` reads an option of the command, such as ``--judge``."""
    kind = brought_class(name)
    return name in READS[option] if kind is None else option.removeprefix("--") in kind.reads


def brought_class(name: str) -> Any:
    """The class of another package's metric called ``name``; None where it is one of ours, or none."""
    point = None if name in METRICS else GROUP.find(name, ours=False)
    return None if point is None else metric_class(point)


def code_behind(names: Iterable[str]) -> dict[str, list[str]]:
    """The code of packages that bring metrics of ``names``, each ``NAME`` or ``NAME:VARIANT``, by metric."""
    return GROUP.code(name for name in (given.partition(":")[0] for given in names) if name not in METRICS)


def refuse_unread(names: Sequence[str], **options: Any) -> None:
    """UserError for an option, by its Python name, that was given and that none of the metrics ``names`` reads."""
    metrics_named(names)
    for name, value in options.items():
        option = f"--{name.removesuffix('s')}"
        # With weights of their own they do without the judge's features.
        idle = {"fid", "kid"} - {*names} if option == "--judge" else set()
        reading = {name for name in (given.partition(":")[0] for given in names) if reads(name, option)} - idle
        if value and not reading:
            raise UserError(
                f"{option} ({name}=) would do nothing for --metrics {','.join(names)} (metrics=): it is for "
                f"{', '.join(sorted(READS[option]))}. Leave it out."
            )


def metrics_named(names: Sequence[str]) -> dict[str, AnyMetric]:
    """The metrics of ``names``, each ``NAME`` or ``NAME:VARIANT``, by the key that their score gets; at least one."""
    if not names:
        raise UserError(f"No metric was named (metrics=, --metrics). There are: {', '.join(known())}.")
    found: dict[str, AnyMetric] = {}
    for given in dict.fromkeys(names):
        name, _, variant = given.partition(":")
        metric = find(name)(variant or None)
        # A rule changes what is counted, so it is part of the score's name; where weights lie does not.
        key = given if variant in RULES else metric.key
        if key in found:
            raise UserError(f"{given!r} would take the place of another score {key!r} (metrics=, --metrics): name one.")
        found[key] = metric
    return found


def measured_by(metrics: Mapping[str, AnyMetric], request: Request) -> dict[str, str]:
    """SHA-256 of everything that the ``metrics``, once checked, measure by: an evaluation is resumed with the same."""
    found = {"judge_weights": request.judge.fingerprint}
    if request.reference is not None:
        found["reference_content"] = request.reference.fingerprint
    for metric in metrics.values():
        found |= metric.own_weights()
    return found
