"""From the concepts that a user names to the prompts that a run forgets and keeps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaunlearn.canvas.catalog import NAMES, said
from metaunlearn.canvas.tasks import known, task_for, with_styles
from metaunlearn.data.wording import synonyms
from metaunlearn.errors import UserError

logger = logging.getLogger(__name__)

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}")

EVERYDAY = (
    "a house", "a car", "a tree", "a dog", "a cat", "a chair", "a bicycle", "a cup of coffee", "a book", "a flower",
    "a mountain", "a boat", "a clock", "a bridge", "a bird", "an apple", "a street", "a lamp", "a train", "a horse",
    "a table", "a beach", "a forest", "a computer",
)  # fmt: skip
"""Plain everyday things that are kept when the user names none."""
NOTHING = "none"
"""In place of texts to retain: none but those that are named as related."""


@dataclass(frozen=True)
class ConceptPrompts:
    """Prompts of one erasing run."""

    forget: tuple[str, ...]
    """Every prompt that asks for a concept: one concept after the other, then again in other words. One that has fewer
    prompts than another begins again, so that all concepts come equally often."""
    related: tuple[str, ...]
    unrelated: tuple[str, ...]
    of_concept: tuple[tuple[str, ...], ...] = ()
    """The prompts of ``forget``, apart for each text that the user gave, synonyms one by one."""
    edited: tuple[str, ...] = ()
    """Texts that name a concept and nothing else, as closed-form edits want them: the user's, or as Canvas's captions
    name it."""
    kept: tuple[str, ...] = ()
    """What is kept, related before unrelated: the user's texts where there are any, else prompts; with ``none`` in
    place of unrelated ones nothing but the user's related ones."""

    def check_retained(self) -> None:
        """Refuse to make retained pictures, which training needs, where no prompt of them was left."""
        if not self.unrelated:
            raise UserError(
                "retain=['none'] (--retain none) leaves no prompt for the retained pictures that training needs: give "
                "such pictures (retain_data=..., --retain-data DIR), name what is related (related=[...], --related "
                "TEXT), or use a closed-form method without the meta objective (--method uce --no-meta)."
            )


def prompts_for(
    pipeline: Any, concepts: Sequence[str], *, retain: Sequence[str] = (), related: Sequence[str] = ()
) -> ConceptPrompts:
    """Prompts to forget and to keep. Canvas knows its own groups; any other model gets templates and a plain list.

    With ``retain=["none"]`` neither of these is kept, but ``related`` alone.
    """
    if not concepts:
        raise UserError("no concept to erase; name at least one (concepts=[...], --concept TEXT).")
    if NOTHING in retain and len(retain) > 1:
        raise UserError("retain (--retain) says 'none', and something else as well; say either.")
    texts = [text for concept in concepts for text in synonyms(concept)]
    if is_canvas(pipeline):
        found = _canvas_prompts(texts)
    else:
        found = ConceptPrompts(_templates(texts), (), EVERYDAY)
        if not retain:
            logger.warning(
                "nothing was named to keep, so a list of %d everyday things is used; name what matters to you with "
                "--retain TEXT (unrelated concepts) and --related TEXT (concepts like the erased one); closed forms "
                "can also do without (--retain none)",
                len(EVERYDAY),
            )
    if NOTHING in retain:
        retain, found = (), replace(found, related=(), unrelated=())
    of_concept = tuple(_prompts_of(pipeline, text) for text in texts)
    return ConceptPrompts(
        forget=_in_turn(of_concept),
        related=_templates(related) if related else found.related or (_templates(retain) or found.unrelated),
        unrelated=_templates(retain) if retain else found.unrelated or _templates(related),
        of_concept=of_concept,
        edited=tuple(dict.fromkeys(_edited(pipeline, text) for text in texts)),
        kept=tuple(dict.fromkeys([*(related or found.related), *(retain or found.unrelated)])),
    )


def guide_prompts(pipeline: Any, prompts: ConceptPrompts, guide: str) -> tuple[str, ...]:
    """``prompts.forget``, one by one, with ``guide`` named in the concept's place.

    UserError when there are no such prompts: on Canvas an object takes an object's place, and a style a style's.
    """
    named = _prompts_of(pipeline, guide)
    in_place: dict[str, str] = {}
    for texts in prompts.of_concept:
        if len(texts) != len(named):
            raise UserError(
                f"the guide {guide!r} cannot take the place of what is erased, as in {texts[0]!r} (guide, "
                "--set guide=TEXT): on Canvas a style takes a style's place, and an object an object's."
            )
        in_place |= dict(zip(texts, named, strict=True))
    return tuple(in_place[prompt] for prompt in prompts.forget)


def unnamed_prompts(pipeline: Any) -> ConceptPrompts:
    """What a run that names nothing to keep keeps, whatever its concept is: for estimates."""
    if is_canvas(pipeline):
        return _canvas_prompts([])
    return ConceptPrompts((), EVERYDAY, EVERYDAY)


def is_canvas(pipeline: Any) -> bool:
    """Whether ``pipeline`` is the embedded model or descends from it: its tokenizer knows Canvas's words."""
    return "openmoji</w>" in pipeline.tokenizer.get_vocab()


def _in_turn(of_concept: Sequence[Sequence[str]]) -> tuple[str, ...]:
    ways = max(map(len, of_concept))
    return tuple(texts[way % len(texts)] for way in range(ways) for texts in of_concept)


def _templates(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(template.format(text) for template in TEMPLATES for text in texts)


def _prompts_of(pipeline: Any, text: str) -> tuple[str, ...]:
    return _canvas_prompts([text]).forget if is_canvas(pipeline) else _templates([text])


def _edited(pipeline: Any, text: str) -> str:
    """The text itself; what Canvas knows, as its captions name it: its text encoder has seen nothing but captions."""
    name = _bare(text)
    return said(name) if is_canvas(pipeline) and known(name) else text


def _canvas_prompts(texts: Sequence[str]) -> ConceptPrompts:
    forget: list[str] = []
    related: list[str] = []
    erased = {_bare(text) for text in texts}
    unrelated = list(with_styles([name for name in NAMES if name not in erased]))
    for text in texts:
        if not known(_bare(text)):
            forget += _templates([text])
            continue
        task = task_for(_bare(text))
        forget += task.concept_prompts
        related += [item.prompt for item in task.related if item.label not in erased]
        kept = {item.prompt for item in task.unrelated}
        unrelated = [item for item in unrelated if item.prompt in kept]
    rest = tuple(item.prompt for item in unrelated)
    return ConceptPrompts(tuple(forget), tuple(related) or rest, rest)


def _bare(text: str) -> str:
    """``"a knife"`` → ``"knife"``."""
    words = text.lower().split()
    return " ".join(words[1:] if words and words[0] in {"a", "an", "the"} else words)
