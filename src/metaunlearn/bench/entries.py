"""Measured rows of one place in a table, and their pooled score as it is printed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from metaunlearn.bench.formats import Entry
from metaunlearn.bench.results import Measured, Pooled


def at(rows: Iterable[Measured], place: tuple[str, float]) -> list[Measured]:
    """Those of ``rows`` after (attack, steps or strength)."""
    return [measured for measured in rows if (measured.row.attack, measured.row.step) == place]


def entry_of(found: Pooled | None, seeds: int, digits: int | None, *, factor: float = 1.0) -> Entry:
    """``factor`` times ``found`` with its interval; empty where nothing is measured.

    ``digits`` are decimals; None: as many as the figure needs for three significant digits, but at least one.
    """
    if found is None:
        return Entry()
    if digits is None:
        digits = max(1, 2 - math.floor(math.log10(abs(factor * found.value)))) if found.value else 1
    value, low, high = (f"{factor * part:.{digits}f}" for part in (found.value, found.low, found.high))
    return Entry(value, factor * found.value, low, high, seeds_note(found, seeds))


def seeds_note(found: Pooled, seeds: int) -> str:
    """Of how many of the seeds a figure is; empty when it is of all."""
    return "" if len(found.by_seed) == seeds else f"{len(found.by_seed)} of {seeds} seeds"
