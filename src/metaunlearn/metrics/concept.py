"""Concept score: in how many images does the judge see the concept? Higher: more of it; an eraser wants it low.

N images, (N, 3, H, W) in [0, 1]. A name may hold synonyms, ``a|b``: seeing any of them counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metaunlearn.data.wording import bare, synonyms
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.intervals import Score, require_data, score, wilson
from metaunlearn.metrics.judge import Judge


def concept_score(judge: Judge, images: Tensor, concept: str, alternatives: Sequence[str]) -> Score:
    """Percentage of ``images`` in which the judge sees ``concept`` rather than any of the ``alternatives``."""
    require_data(len(images), "the concept score")
    if not alternatives:
        raise UserError(
            f"The concept score of {concept!r} needs something else that the judge could see, or every image matches: "
            "pass alternatives=[...] (--alternative TEXT, repeatable)."
        )
    return concept_share(see(judge, images, [concept, *alternatives]), judge, concept, alternatives)


def concept_share(saw: Sequence[str], judge: Judge, concept: str, alternatives: Sequence[str]) -> Score:
    """The concept score of N images in which ``judge`` saw ``saw``, N names."""
    return score(
        wilson(list(saw).count(concept), len(saw)),
        protocol={**judged_protocol("concept", judge, [concept, *alternatives]), "concept": concept},
        raw=[{"saw": name} for name in saw],
    )


def label_accuracy(judge: Judge, images: Tensor, labels_per_image: Sequence[str], choices: Sequence[str]) -> Score:
    """Percentage of ``images`` in which the judge sees the image's own label among ``choices``."""
    require_data(len(images), "the accuracy")
    if len(labels_per_image) != len(images):
        raise UserError(f"Expected a label for each image, got {len(images)} images, {len(labels_per_image)} labels.")
    unknown = sorted(set(labels_per_image) - set(choices))
    if unknown:
        raise UserError(f"The label {unknown[0]!r} is not among the choices.{did_you_mean(unknown[0], choices)}")
    return share_right(see(judge, images, choices), labels_per_image, judge, choices)


def share_right(saw: Sequence[str], labels: Sequence[str], judge: Judge, choices: Sequence[str]) -> Score:
    """The accuracy on N images of ``labels`` in which ``judge`` saw ``saw``, N names each."""
    right = sum(name == label for name, label in zip(saw, labels, strict=True))
    return score(
        wilson(right, len(saw)),
        protocol=judged_protocol("accuracy", judge, choices),
        raw=[{"saw": name, "label": label} for name, label in zip(saw, labels, strict=True)],
    )


def see(judge: Judge, images: Tensor, choices: Sequence[str]) -> list[str]:
    """Which of ``choices`` the judge sees in each image, N names."""
    owner, labels = [], []
    for choice in choices:
        for synonym in synonyms(choice):
            owner.append(choice)
            labels.append(synonym)
    repeated = [label for index, label in enumerate(labels) if label in labels[:index]]
    if repeated:
        raise UserError(f"{repeated[0]!r} stands twice among the concept and its alternatives (--alternative).")
    return [owner[index] for index in judge.classify(images, labels).tolist()]


def default_choices(judge: Judge, names: Sequence[str]) -> list[str]:
    """``names`` and the other labels of the vocabulary of ``judge`` that knows them all.

    For Canvas, the other objects beside an object and the other styles beside a style.
    """
    vocabulary = vocabulary_of(judge, names)
    if vocabulary is not None:
        return with_rest(names, vocabulary)
    raise UserError(
        f"The judge {judge.name} (--judge) has no vocabulary with {', '.join(map(repr, names))}, so what else it may "
        "see has to be said: pass alternatives=[...] (--alternative TEXT, repeatable)."
    )


def vocabulary_of(judge: Judge, names: Sequence[str]) -> tuple[str, ...] | None:
    """The vocabulary of ``judge`` that knows all ``names``, by any synonym, article or not; ``None`` without one."""
    known = [_called(name) for name in names]
    return next((words for words in judge.vocabularies if all(name & set(words) for name in known)), None)


def with_rest(names: Sequence[str], vocabulary: Sequence[str]) -> list[str]:
    """``names``, and what ``vocabulary`` has beside them."""
    taken = {word for name in names for word in _called(name)}
    return [*names, *(label for label in vocabulary if label not in taken)]


def _called(name: str) -> set[str]:
    """What a vocabulary may call ``name``."""
    return {word for text in synonyms(name) for word in (text, bare(text))}


def judged_protocol(metric: str, judge: Judge, choices: Sequence[str]) -> dict[str, object]:
    """What of a choice among labels has to be equal for two scores to be comparable."""
    return {
        "metric": metric,
        "unit": "percent of images",
        "judge": judge.name,
        "judge_weights": judge.fingerprint,
        "wording": judge.wording,
        "rule": "the highest-scoring choice",
        "choices": list(choices),
        "interval": "Wilson",
    }
