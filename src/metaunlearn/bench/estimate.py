"""``--dry-run``: what a grid would take, from what its cells took so far, else by the doctor's count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metaunlearn.bench.cells import KINDS, Cell
from metaunlearn.bench.needs import Need, Needs
from metaunlearn.bench.plan import Plan, missing_of
from metaunlearn.bench.store import Store

Group = tuple[str, ...]
"""Cells that are alike: their kind, and perhaps what is done in them."""


@dataclass(frozen=True, kw_only=True)
class KindEstimate:
    """All cells of one kind."""

    kind: str
    cells: int
    cached: int
    """Of them, those that are there; and those that nothing needs any more."""
    seconds: float | None
    """Of the others, for one process, as far as it is known; None: of none of them."""
    unknown: int
    """Of how many of the others it is not known."""
    counted: bool
    """Whether some of it is the doctor's count, right to an order of magnitude: no such cell has run yet."""
    memory_bytes: int | None
    """The most that one of the others needs, by the doctor's count; None: none is left, or its model is not here."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What ``--dry-run`` says."""

    kinds: list[KindEstimate]
    todo: list[dict[str, Any]]
    """Name, labels, seconds and memory of the cells that would be made, in order."""
    there: list[dict[str, Any]]
    """Name and labels of those that are there."""
    memory_bytes: int | None
    """The most that a cell still to be made needs, by the doctor's count; None: none is to be made, or the base
    model is not here."""
    missing: list[str]
    """What has to be there first, each with what to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Guess:
    """What one cell would take."""

    need: Need | None
    seconds: float | None
    counted: bool


def outlook(plan: Plan, store: Store, asked: Sequence[Cell], device: str = "cpu") -> Outlook:
    """Look at what is there of the cells ``asked`` for and what they need; run nothing, write nothing. Times are one
    process's on ``device``."""
    cells = plan.with_needs(asked)
    todo = plan.with_needs(asked, skip=store.complete)
    rates, needs = _rates(store.records()), Needs(plan, device)
    guesses = {cell.name: _guess(cell, rates, needs) for cell in todo}
    kinds = []
    for kind in KINDS:
        mine = [cell for cell in cells if cell.kind == kind]
        if not mine:
            continue
        left = [guesses[cell.name] for cell in mine if cell.name in guesses]
        known = [guess.seconds for guess in left if guess.seconds is not None]
        kinds.append(
            KindEstimate(
                kind=kind,
                cells=len(mine),
                cached=len(mine) - len(left),
                seconds=sum(known) if known or not left else None,
                unknown=len(left) - len(known),
                counted=any(guess.counted for guess in left),
                memory_bytes=_most(left),
            )
        )
    return Outlook(
        kinds=kinds,
        todo=[{"cell": cell.name, **cell.labels, **_said(guesses[cell.name])} for cell in todo],
        there=[{"cell": cell.name, **cell.labels} for cell in cells if store.complete(cell.name)],
        memory_bytes=_most(list(guesses.values())) or None,  # 0: of what needs no model alone.
        missing=missing_of(todo),
    )


def _guess(cell: Cell, rates: Mapping[Group, float], needs: Needs) -> _Guess:
    need, seconds = needs.of(cell), _seconds(cell, rates)
    counted = None if need is None else need.seconds
    return _Guess(need, counted, bool(counted)) if seconds is None else _Guess(need, seconds, False)


def _most(guesses: Sequence[_Guess]) -> int | None:
    return max((guess.need.device_bytes for guess in guesses if guess.need is not None), default=None)


def _said(guess: _Guess) -> dict[str, Any]:
    return {"seconds": guess.seconds, "memory_bytes": None if guess.need is None else guess.need.device_bytes}


def _groups(kind: str, labels: Mapping[str, Any]) -> tuple[Group, Group]:
    """From the most alike to the whole kind."""
    return (kind, str(labels.get("method")), str(labels.get("variant")), str(labels.get("model"))), (kind,)


def _rates(records: Sequence[Mapping[str, Any]]) -> dict[Group, float]:
    """Seconds for a unit of work, by group."""
    seconds: dict[Group, float] = defaultdict(float)
    sizes: dict[Group, float] = defaultdict(float)
    for record in records:
        for group in _groups(record["kind"], record["labels"]):
            seconds[group] += record["seconds"]
            sizes[group] += record["size"]
    return {group: seconds[group] / sizes[group] for group in seconds if sizes[group]}


def _seconds(cell: Cell, rates: Mapping[Group, float]) -> float | None:
    rate = next((rates[group] for group in _groups(cell.kind, cell.labels) if group in rates), None)
    return None if rate is None else rate * cell.size
