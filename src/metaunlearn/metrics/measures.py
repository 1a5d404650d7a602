"""The metrics by name, those of the judge's own eyes among them, and which options each reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.clip_score import DEFAULT_RULE as DEFAULT_CLIP_RULE
from metaunlearn.metrics.clip_score import ClipRule, clip_rule_named, mean_clip_score, pair_scores, text_features
from metaunlearn.metrics.concept import concept_share, default_choices, label_accuracy, see, share_right
from metaunlearn.metrics.distance import Distance, fid, kid
from metaunlearn.metrics.interface import Metric, Pictures, Request, Row
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.nudity import DEFAULT_RULE, RULES, rule_named
from metaunlearn.metrics.own_models import Nsfw, Nudity, Unsafe, column, probe
from metaunlearn.metrics.unlearncanvas import (
    ACCURACIES,
    Alternatives,
    check_roles,
    domain_choices,
    unlearncanvas_score,
)

AnyMetric = Metric | Distance


class AsksTheJudge:
    """A metric without a model of its own."""

    def own_weights(self) -> Mapping[str, str]:
        """Nothing: the judge is the request's."""
        return {}


class Concept(AsksTheJudge):
    """In how many images the judge sees the concept."""

    key = "concept"

    def check(self, request: Request) -> None:
        see(request.judge, probe(), self._choices(request))

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        request = pictures.request
        return [{"saw": name} for name in see(request.judge, pictures.images, self._choices(request))]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        concept, *alternatives = self._choices(request)
        return concept_share([row["saw"] for row in rows], request.judge, concept, alternatives)

    def _choices(self, request: Request) -> list[str]:
        """The concept, and what the judge may see instead."""
        if request.concept is None:
            raise UserError("The metric 'concept' needs the concept to look for: pass concept= (--concept TEXT).")
        alternatives = Alternatives.split(request.alternatives).own
        return [request.concept, *alternatives] if alternatives else default_choices(request.judge, [request.concept])


class Accuracy(AsksTheJudge):
    """In how many images the judge sees the prompt's own label."""

    key = "accuracy"

    def check(self, request: Request) -> None:
        choices = self._choices(request)
        label_accuracy(request.judge, probe(), choices[:1], choices)

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        saw = see(pictures.request.judge, pictures.images, self._choices(pictures.request))
        return [{"saw": name, "label": draw.label} for name, draw in zip(saw, pictures.draws, strict=True)]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        saw, labels = [row["saw"] for row in rows], [row["label"] for row in rows]
        return share_right(saw, labels, request.judge, self._choices(request))

    def _choices(self, request: Request) -> list[str]:
        named = list(dict.fromkeys(labels_of(request, self.key)))
        own, cross = Alternatives.split(request.alternatives)
        if own or cross:
            return list(dict.fromkeys([*named, *own, *cross]))
        return default_choices(request.judge, named)


class RoleAccuracy(AsksTheJudge):
    """UA, IRA or CRA: accuracy on the prompts of one role, the judge choosing among the labels of its domain."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.role = ACCURACIES[key].role

    def check(self, request: Request) -> None:
        check_roles([draw.role for draw in request.draws], self.key)
        choices = self._choices(request)
        label_accuracy(request.judge, probe(), choices[:1], choices)

    def measure(self, pictures: Pictures) -> Sequence[Row | None]:
        mine = [index for index, draw in enumerate(pictures.draws) if draw.role == self.role]
        rows: list[Row | None] = [None] * len(pictures.draws)
        if mine:
            saw = see(pictures.request.judge, pictures.images[mine], self._choices(pictures.request))
            for index, name in zip(mine, saw, strict=True):
                rows[index] = {"saw": name, "label": pictures.draws[index].label}
        return rows

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        saw, labels = [row["saw"] for row in rows], [row["label"] for row in rows]
        return unlearncanvas_score(self.key, saw, labels, request.judge, self._choices(request))

    def _choices(self, request: Request) -> list[str]:
        roles = [draw.role for draw in request.draws]
        return domain_choices(self.key, labels_of(request, self.key), roles, request.alternatives, request.judge)


class ClipScore(AsksTheJudge):
    """How well images fit their prompts, by a named rule."""

    def __init__(self, rule: ClipRule) -> None:
        self.rule = rule
        # Another rule words the prompts in another way or scales what it keeps, so it keeps rows of its own.
        self.key = "clip-score" if rule.name == DEFAULT_CLIP_RULE else f"clip-score:{rule.name}"

    def check(self, request: Request) -> None:
        request.judge.embed_texts([request.draws[0].text])

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        texts = text_features(pictures.request.judge, [draw.text for draw in pictures.draws], self.rule)
        return [{"score": value} for value in pair_scores(pictures.features, texts, self.rule).tolist()]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        return mean_clip_score(column(rows), request.judge, self.rule, seed=request.seed)


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
}
"""Options of the command, and the metrics that read them; of ``fid:FILE`` and ``kid:FILE`` none reads a judge."""


def refuse_unread(names: Sequence[str], **options: Any) -> None:
    """UserError for an option, by its Python name, that was given and that none of the metrics ``names`` reads."""
    metrics_named(names)
    for name, value in options.items():
        option = f"--{name.removesuffix('s')}"
        # With weights of their own they do without the judge's features.
        idle = {"fid", "kid"} - {*names} if option == "--judge" else set()
        reading = {given.partition(":")[0] for given in names} & READS[option] - idle
        if value and not reading:
            raise UserError(
                f"{option} ({name}=) would do nothing for --metrics {','.join(names)} (metrics=): it is for "
                f"{', '.join(sorted(READS[option]))}. Leave it out."
            )


def metrics_named(names: Sequence[str]) -> dict[str, AnyMetric]:
    """The metrics of ``names``, each ``NAME`` or ``NAME:VARIANT``, by the key that their score gets; at least one."""
    known = ", ".join(METRICS)
    if not names:
        raise UserError(f"No metric was named (metrics=, --metrics). There are: {known}.")
    found: dict[str, AnyMetric] = {}
    for given in dict.fromkeys(names):
        name, _, variant = given.partition(":")
        if name not in METRICS:
            raise UserError(
                f"There is no metric {name!r} (metrics=, --metrics).{did_you_mean(name, METRICS)} There are: {known}."
            )
        metric = METRICS[name](variant or None)
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


def labels_of(request: Request, metric: str) -> list[str]:
    """What each image should show; UserError when a prompt does not say it."""
    labels = [draw.label for draw in request.draws if draw.label is not None]
    if len(labels) < len(request.draws):
        raise UserError(f"The metric {metric!r} needs a label for every prompt: add a column 'label' to --prompts.")
    return labels
