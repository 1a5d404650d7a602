"""A concept as a user words it: its synonyms, and other words in its place."""

from __future__ import annotations

import re
from collections.abc import Iterable

from metaunlearn.errors import UserError


def listed(texts: Iterable[str] | None) -> list[str]:
    """Texts as a list; a single one may stand for a list of one, and None for none."""
    if not isinstance(texts, Iterable | None):
        raise UserError(f"expected texts, as a list; got {texts!r}.")
    return [texts] if isinstance(texts, str) else list(texts or ())


def texts_of(given: Iterable[str] | None) -> list[str]:
    """The same; UserError when something in it is no text."""
    texts = listed(given)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"expected texts (concepts=[...], retain=[...], related=[...]), got {text!r}.")
    return texts


def synonyms(concept: str) -> list[str]:
    """``"a knife|a blade"`` → its texts; UserError when one is empty."""
    texts = [text.strip() for text in concept.split("|")] if isinstance(concept, str) else []
    if not texts or not all(texts):
        raise UserError(
            f"expected a text, or several separated by |, got {concept!r} "
            "(concepts=[...], --concept TEXT, --retain TEXT, --related TEXT, --alternative TEXT)."
        )
    return texts


ARTICLES = frozenset({"a", "an", "the"})


def has_article(text: str) -> bool:
    """Whether ``text`` begins with one, and goes on."""
    first, _, rest = text.lower().partition(" ")
    return bool(rest) and first in ARTICLES


def bare(text: str) -> str:
    """A thing's name in lower case and without its article: ``"The knife"`` → ``"knife"``."""
    words = text.lower().split()
    return " ".join(words[1:] if words and words[0] in ARTICLES else words)


def said_as(prompt: str, concept: str, word: str) -> str:
    """``prompt`` with ``word`` wherever it names ``concept``, by any synonym; as it is if ``word`` is empty."""
    if not word:
        return prompt
    names = sorted(synonyms(concept), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, names)), lambda found: word, prompt, flags=re.IGNORECASE)
