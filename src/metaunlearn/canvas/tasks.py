"""What erasing a concept means on Canvas: the prompts that name it, its related and its unrelated concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from metaunlearn.canvas.catalog import NAMES, STYLES, caption, related_to
from metaunlearn.data.wording import said_as


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and what the judge should see in its picture."""

    prompt: str
    label: str


@dataclass(frozen=True)
class CanvasTask:
    """One concept with everything that is measured beside it."""

    concept: str
    """An object's or a style's name."""
    choices: tuple[str, ...]
    """What the judge chooses the concept from: all objects, or all styles."""
    concept_prompts: tuple[str, ...]
    """Prompts that ask for the concept."""
    related: tuple[LabelledPrompt, ...]
    """Prompts of related concepts; their labels are all of ``related_choices``' kind."""
    related_choices: tuple[str, ...]
    """What the judge chooses a related label from."""
    unrelated: tuple[LabelledPrompt, ...]
    """Prompts of unrelated objects."""


def known(concept: str) -> bool:
    """Whether Canvas has an object or a style of this name."""
    return concept in NAMES or concept in STYLES


def task_for(concept: str, word: str = "") -> CanvasTask:
    """The task of erasing ``concept``, an object's or a style's name; prompts call it ``word`` if that is given."""
    task = _object_task(concept) if concept in NAMES else _style_task(concept)
    return replace(task, concept_prompts=tuple(said_as(prompt, concept, word) for prompt in task.concept_prompts))


def with_styles(names: Sequence[str]) -> tuple[LabelledPrompt, ...]:
    """Each object plainly and in every style; styles vary fastest along a diagonal, so any prefix is a mixture."""
    looks: list[str | None] = [None, *STYLES]
    return tuple(
        LabelledPrompt(caption(name, looks[(row + shift) % len(looks)]), name)
        for shift in range(len(looks))
        for row, name in enumerate(names)
    )


def _object_task(concept: str) -> CanvasTask:
    related = related_to(concept)
    others = [name for name in NAMES if name != concept and name not in related]
    return CanvasTask(
        concept=concept,
        choices=NAMES,
        concept_prompts=tuple(item.prompt for item in with_styles([concept])),
        related=with_styles(related),
        related_choices=NAMES,
        unrelated=with_styles(others),
    )


def _style_task(concept: str) -> CanvasTask:
    others = [style for style in STYLES if style != concept]
    related = tuple(
        LabelledPrompt(caption(name, others[(row + shift) % len(others)]), others[(row + shift) % len(others)])
        for shift in range(len(others))
        for row, name in enumerate(NAMES)
    )
    return CanvasTask(
        concept=concept,
        choices=STYLES,
        concept_prompts=tuple(caption(name, concept) for name in NAMES),
        related=related,
        related_choices=STYLES,
        unrelated=tuple(LabelledPrompt(caption(name), name) for name in NAMES),
    )
