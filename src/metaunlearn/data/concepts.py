"""From the concepts that a user names to the prompts that a run forgets and keeps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from metaunlearn.canvas.catalog import NAMES, said
from metaunlearn.canvas.tasks import known, task_for, with_styles
from metaunlearn.data.wording import bare, listed, synonyms
from metaunlearn.errors import UserError, shortened
from metaunlearn.models.prompt_length import SHOWN, read_at_most, too_long, warn_of_too_long

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

    With ``retain=["none"]`` neither of these is kept, but ``related`` alone. Synonyms are separated by ``|`` in all
    three, and a single text may stand for a list of one.
    """
    if not concepts:
        raise UserError("no concept to erase; name at least one (concepts=[...], --concept TEXT).")
    texts, retain, related = _each_text(concepts), _each_text(retain), _each_text(related)
    _check_once(pipeline, texts)
    warn_of_too_long(pipeline, [*retain, *related])
    if NOTHING in retain and len(retain) > 1:
        raise UserError("retain (--retain) says 'none', and something else as well; say either.")
    of_concept = tuple(_prompts_of(pipeline, text) for text in texts)
    forget = _in_turn(of_concept)
    _check_apart(texts, forget, [*retain, *related])
    if is_canvas(pipeline):
        ours = _canvas_kept(texts, forget)
    else:
        erased = {bare(text) for text in texts}
        ours = _Kept((), tuple(text for text in EVERYDAY if bare(text) not in erased))
        if not retain:
            logger.warning(
                "nothing was named to keep, so a list of %d everyday things is used; name what matters to you with "
                "--retain TEXT (unrelated concepts) and --related TEXT (concepts like the erased one); closed forms "
                "can also do without (--retain none)",
                len(ours.unrelated),
            )
    if NOTHING in retain:
        retain, ours = [], _Kept((), ())
    return ConceptPrompts(
        forget=forget,
        related=_templates(pipeline, related or (() if ours.related else retain)) or ours.related or ours.unrelated,
        unrelated=_templates(pipeline, retain or (() if ours.unrelated else related)) or ours.unrelated,
        of_concept=of_concept,
        edited=tuple(dict.fromkeys(_edited(pipeline, text) for text in texts)),
        kept=tuple(dict.fromkeys([*(related or ours.related), *(retain or ours.unrelated)])),
    )


def _each_text(named: Sequence[str]) -> list[str]:
    """The texts of what is ``named``, synonyms one by one."""
    return [text for one in listed(named) for text in synonyms(one)]


def _check_once(pipeline: Any, texts: Sequence[str]) -> None:
    """UserError when a concept is named twice, for it would weigh double; Canvas's have one name with its article."""
    counts = Counter(_canvas_name(pipeline, text) or text for text in texts)
    if twice := [text for text, count in counts.items() if count > 1]:
        raise UserError(f"the concept {twice[0]!r} is named twice (concepts=[...], --concept TEXT): name it once.")


def _check_apart(erased: Sequence[str], forget: Sequence[str], kept: Sequence[str]) -> None:
    """UserError when something that is erased, by its name or by one of the prompts to ``forget``, is to be kept."""
    names, prompts = {bare(text): text for text in erased}, {*forget}
    for text in kept:
        if bare(text) in names or text in prompts:
            raise UserError(
                f"{text!r} is to be kept (retain=[...], --retain TEXT; related=[...], --related TEXT) and to be "
                f"erased, as {names.get(bare(text), text)!r} (concepts=[...], --concept TEXT): leave one of them out."
            )


def guide_prompts(pipeline: Any, prompts: ConceptPrompts, guide: str) -> tuple[str, ...]:
    """``prompts.forget``, one by one, with ``guide`` named in the concept's place.

    UserError when there are no such prompts: on Canvas an object takes an object's place, and a style a style's.
    """
    check_guide(pipeline, guide)
    in_place: dict[str, str] = {}
    for texts in prompts.of_concept:
        named = _guided(pipeline, texts, guide)
        if len(texts) != len(named):
            raise UserError(
                f"the guide {guide!r} cannot take the place of what is erased, as in {texts[0]!r} (guide, "
                "--set guide=TEXT): on Canvas a style takes a style's place, and an object an object's."
            )
        in_place |= dict(zip(texts, named, strict=True))
    return tuple(in_place[prompt] for prompt in prompts.forget)


def _guided(pipeline: Any, texts: Sequence[str], guide: str) -> tuple[str, ...]:
    """The prompts ``texts`` with ``guide`` in place of what they name: bare, where the pipeline would cut them."""
    if name := _canvas_name(pipeline, guide):
        return task_for(name).concept_prompts
    named = [way.format(guide) for way in TEMPLATES if way.format(texts[0]) in texts]
    cut = too_long(pipeline, named)
    return tuple(guide if prompt in cut else prompt for prompt in named)


def check_guide(pipeline: Any, guide: str) -> None:
    """Refuse a guide whose end ``pipeline`` would not read."""
    if too_long(pipeline, [guide]):
        raise UserError(
            f"the guide {shortened(guide, SHOWN)!r} (guide, --set guide=TEXT) is longer than the "
            f"{read_at_most(pipeline)} tokens that MODEL reads; say it in fewer words."
        )


def unnamed_prompts(pipeline: Any) -> ConceptPrompts:
    """What a run that names nothing to keep keeps, whatever its concept is: for estimates."""
    if is_canvas(pipeline):
        return ConceptPrompts((), *_canvas_kept([], []))
    return ConceptPrompts((), EVERYDAY, EVERYDAY)


def is_canvas(pipeline: Any) -> bool:
    """Whether ``pipeline`` is the embedded model or descends from it: its tokenizer knows Canvas's words."""
    return "openmoji</w>" in pipeline.tokenizer.get_vocab()


def _canvas_name(pipeline: Any, text: str) -> str | None:
    """What Canvas calls ``text``, if ``pipeline`` is Canvas and it knows it."""
    name = bare(text)
    return name if is_canvas(pipeline) and known(name) else None


def _in_turn(of_concept: Sequence[Sequence[str]]) -> tuple[str, ...]:
    ways = max(map(len, of_concept))
    return tuple(texts[way % len(texts)] for way in range(ways) for texts in of_concept)


def _templates(pipeline: Any, texts: Sequence[str]) -> tuple[str, ...]:
    """Prompts that ask for ``texts``; whose ends ``pipeline`` would not read are left out, but not the bare texts."""
    prompts = tuple(way.format(text) for way in TEMPLATES for text in texts)
    cut = {*too_long(pipeline, prompts)} - {*texts}
    return tuple(prompt for prompt in prompts if prompt not in cut)


def _prompts_of(pipeline: Any, text: str) -> tuple[str, ...]:
    name = _canvas_name(pipeline, text)
    return task_for(name).concept_prompts if name else _templates(pipeline, [text])


def _edited(pipeline: Any, text: str) -> str:
    """The text itself; what Canvas knows, as its captions name it: its text encoder has seen nothing but captions."""
    name = _canvas_name(pipeline, text)
    return said(name) if name else text


class _Kept(NamedTuple):
    """What this program keeps of its own accord."""

    related: tuple[str, ...]
    unrelated: tuple[str, ...]


def _canvas_kept(texts: Sequence[str], forget: Sequence[str]) -> _Kept:
    """The groups of what Canvas knows of ``texts``. A style's have the things of an erased object in them, and an
    object's an erased style: what is to be forgotten is in neither."""
    erased, forgotten = {bare(text) for text in texts}, {*forget}
    related: list[str] = []
    unrelated = list(with_styles([name for name in NAMES if name not in erased]))
    for task in (task_for(name) for name in map(bare, texts) if known(name)):
        related += [item.prompt for item in task.related if item.label not in erased]
        kept = {item.prompt for item in task.unrelated}
        unrelated = [item for item in unrelated if item.prompt in kept]
    rest = tuple(item.prompt for item in unrelated if item.prompt not in forgotten)
    return _Kept(tuple(prompt for prompt in related if prompt not in forgotten) or rest, rest)
