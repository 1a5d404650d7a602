"""The metrics of the judge's own eyes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaunlearn.errors import UserError
from metaunlearn.metrics.clip_score import DEFAULT_RULE, ClipRule, mean_clip_score, pair_scores, text_features
from metaunlearn.metrics.concept import concept_share, default_choices, label_accuracy, see, share_right
from metaunlearn.metrics.interface import Pictures, Request, Row
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.own_models import column, probe
from metaunlearn.metrics.unlearncanvas import (
    ACCURACIES,
    Alternatives,
    check_roles,
    domain_choices,
    unlearncanvas_score,
)


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
        self.key = "clip-score" if rule.name == DEFAULT_RULE else f"clip-score:{rule.name}"

    def check(self, request: Request) -> None:
        request.judge.embed_texts([request.draws[0].text])

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        texts = text_features(pictures.request.judge, [draw.text for draw in pictures.draws], self.rule)
        return [{"score": value} for value in pair_scores(pictures.features, texts, self.rule).tolist()]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        return mean_clip_score(column(rows), request.judge, self.rule, seed=request.seed)


def labels_of(request: Request, metric: str) -> list[str]:
    """What each image should show; UserError when a prompt does not say it."""
    labels = [draw.label for draw in request.draws if draw.label is not None]
    if len(labels) < len(request.draws):
        raise UserError(f"The metric {metric!r} needs a label for every prompt: add a column 'label' to --prompts.")
    return labels
