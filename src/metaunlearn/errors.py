"""The exceptions of this package, and what their messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MetaunlearnError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(MetaunlearnError):
    """The call was wrong; nothing was done. The command line exits with 2."""


class RunError(MetaunlearnError):
    """The run failed on its way; what was good is kept. The command line exits with 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known name, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what another library's ``error`` says, without its full stop; its class if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")
