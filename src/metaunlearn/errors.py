"""The exceptions of this package, and what their messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MetaunlearnError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(MetaunlearnError):
    """The call was wrong; nothing was done. The command line exits with 2."""


class RunError(MetaunlearnError):
    """The run failed on its way; what was good is kept. The command line exits with 1."""


OFFERED = 3
"""Names that a hint gives at most."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``: the names that begin with ``word``, else the closest one; empty when none is close.

    When more than ``OFFERED`` names begin with ``word``, the closest of them is offered alone.
    """
    if not isinstance(word, str):  # A call may name anything.
        return ""
    names = list(dict.fromkeys(known))
    begun = [name for name in names if word and name.casefold().startswith(word.casefold())]
    if len(begun) > OFFERED:
        begun = difflib.get_close_matches(word, begun, n=1, cutoff=0)
    close = begun or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def shortened(text: str, letters: int) -> str:
    """``text``, or as much of its beginning as ``letters`` have room for."""
    return text if len(text) <= letters else f"{text[: letters - 1].rstrip(', ')}…"


def some_of(names: Sequence[str], shown: int) -> str:
    """The first ``shown`` of ``names``, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def first_line(error: BaseException) -> str:
    """The first line of what another library's ``error`` says, without its full stop; its class if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")
