"""Attacks that other packages bring: what their class must be."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any, get_args

from metaunlearn.attacks.interface import Input
from metaunlearn.config import AttackSettings
from metaunlearn.errors import UserError
from metaunlearn.plugins import Group

GROUP = Group("metaunlearn.attacks", "attack", "kind=, --kind")
"""Where they are found."""

OURS = ("step", "bits")
"""Words of our own for what a result belongs to."""


def attack_class(point: EntryPoint) -> Any:
    """The class behind an entry point, which must be an attack."""
    kind: Any = GROUP.load_settings(point)
    where = GROUP.where(point)
    ways = [word for word in ("begin", "make") if callable(getattr(kind, word, None))]
    if len(ways) != 1 or not callable(getattr(kind, "check", None)):
        raise UserError(
            f"{where} must have check() and one of begin() (it trains) and make() (it does not); it has "
            f"{' and '.join(ways) or 'neither'}."
        )
    trains = ways == ["begin"]
    if trains and not issubclass(kind, AttackSettings):
        raise UserError(f"{where} trains, and is no subclass of metaunlearn.config.AttackSettings.")
    wanted = ["copies"] if trains else ["needs", "level", "strengths", "leaves", "changed"]
    if lacking := [name for name in wanted if not hasattr(kind, name)]:
        raise UserError(f"{where} must have {', '.join(lacking)} beside {ways[0]}().")
    for name in ("copies", "needs", "changed"):
        if not _are_words(getattr(kind, name, ())):
            raise UserError(f"{where}: {name} is a tuple of names; got {getattr(kind, name)!r}.")
    if not trains:
        _check_edit(kind, where)
    return kind


def _check_edit(kind: Any, where: str) -> None:
    """UserError unless the attributes of a ``kind`` that does not train are what they are read as."""
    if not set(kind.needs) <= set(get_args(Input)) or kind.leaves not in ("pipeline", "pictures"):
        raise UserError(
            f"{where}: needs holds {' or '.join(get_args(Input))}, or nothing, and leaves is pipeline or pictures; "
            f"got {kind.needs!r} and {kind.leaves!r}."
        )
    if not isinstance(kind.level, str) or not re.fullmatch(r"[a-z]+", kind.level) or kind.level in OURS:
        raise UserError(
            f"{where}: level is a word in small letters, for folders' names, and none of {', '.join(OURS)}; "
            f"got {kind.level!r}."
        )
    strengths = kind.strengths
    if not isinstance(strengths, Sequence) or not strengths or not all(map(_is_strength, strengths)):
        raise UserError(f"{where}: strengths are numbers of at least 0, at least one; got {strengths!r}.")
    if alone := sorted({*kind.changed} - {"unet", *getattr(kind, "copies", ())}):
        raise UserError(
            f"{where} changes {', '.join(alone)}, which its copies does not name: it would change the pipeline of "
            "whoever called."
        )


def _are_words(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, str) for one in given)


def _is_strength(given: object) -> bool:
    return isinstance(given, int | float) and 0 <= given < math.inf
