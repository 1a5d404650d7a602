"""``--dry-run``: what a grid would take, from what its cells took so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metaunlearn.bench.cells import KINDS, Cell
from metaunlearn.bench.plan import Plan, Row
from metaunlearn.bench.store import Store
from metaunlearn.doctor import estimate
from metaunlearn.models import load_pipeline


@dataclass(frozen=True, kw_only=True)
class KindEstimate:
    """All cells of one kind."""

    kind: str
    cells: int
    cached: int
    """Of them, those that are there; and those that nothing needs any more."""
    seconds: float | None
    """Of the others, for one process; None: not known, for no cell of this kind has been measured yet."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What ``--dry-run`` says."""

    kinds: list[KindEstimate]
    todo: list[dict[str, Any]]
    """Name and labels of the cells that would be made, in order."""
    memory_bytes: int | None
    """The most that an erasing still to be made needs, by the doctor's count; None: none is to be made, or the base
    model is not here."""
    missing: list[str]
    """What has to be there first, each with what to do about it."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def outlook(plan: Plan, store: Store, rows: Sequence[Row]) -> Outlook:
    """Look at what is there; run nothing, write nothing."""
    cells = plan.behind(rows)
    todo = wanted(plan, store, rows)
    names = {cell.name for cell in todo}
    rates = _rates(store.records())
    kinds = []
    for kind in KINDS:
        mine = [cell for cell in cells if cell.kind == kind]
        if not mine:
            continue
        guesses = [_seconds(cell, rates) for cell in mine if cell.name in names]
        known = [guess for guess in guesses if guess is not None]
        kinds.append(
            KindEstimate(
                kind=kind,
                cells=len(mine),
                cached=len(mine) - len(guesses),
                seconds=sum(known) if len(known) == len(guesses) else None,
            )
        )
    listed = [{"cell": cell.name, **cell.labels} for cell in todo]
    return Outlook(kinds=kinds, todo=listed, memory_bytes=_memory(todo), missing=missing_of(todo))


def missing_of(cells: Sequence[Cell]) -> list[str]:
    """What ``cells`` need that is not here."""
    return list(dict.fromkeys(text for cell in cells for text in cell.missing))


def wanted(plan: Plan, store: Store, rows: Sequence[Row]) -> list[Cell]:
    """The cells that have to be made for ``rows``, in order: what they need, unless nothing that is left needs it."""
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.name in found or store.whole(cell.name):
            return
        for name in cell.needs.values():
            add(plan.cells[name])
        found[cell.name] = cell

    for row in rows:
        add(row.cell)
    return list(found.values())


Group = tuple[str, ...]


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


def _memory(todo: Sequence[Cell]) -> int | None:
    calls = {
        (cell.call["base"], cell.call["method"], cell.call["meta"], cell.call["recipe"], tuple(cell.call["overrides"]))
        for cell in todo
        if cell.kind == "erase" and not cell.missing
    }
    pipelines = {base: load_pipeline(base) for base in {call[0] for call in calls}}
    needs = [
        # The speed only matters for the time, which is known better from cells that ran.
        estimate(pipelines[base], method=method, meta=meta, recipe=recipe, overrides=overrides, speed=1.0).memory_bytes
        for base, method, meta, recipe, overrides in calls
    ]
    return max(needs, default=None)
