"""Settings of a grid: the recipe's, and those that the cells were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.bench.formats import Entry, Table
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.results import Found
from metaunlearn.bench.store import Store
from metaunlearn.report.grid.sheets import Sheet, sheet

TITLES = {"erase": "Erasing", "attack": "Attacking"}
"""By kind of cell."""
NAMES = ("concept", "method", "variant", "model", "attack")
"""Labels of a cell that its settings may depend on; seeds change nothing else."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The settings of all cells of one kind."""

    title: str
    same: dict[str, Any]
    """What those that read it have in common."""
    differs: Sheet | None
    """The others, a line for each cell of the first seed; None when there are none."""


def grid_settings(grid: Grid) -> dict[str, Any]:
    """``[grid]`` as it was read, its lists of tables by name; what is empty is left out."""
    found = _said(grid.model_dump(mode="json"))
    for key in ("concepts", "attacks", "variants", "prompts"):
        items = [said for item in found.pop(key, []) if (said := _said(item))]
        if items:
            found[key] = {item.pop("name", "(no name)"): item for item in items}
    return found


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in ("", [], {}, None)}


def resolved(found: Found, folder: Path) -> list[Resolved]:
    """Settings as the cells behind ``found`` in ``folder`` were made with them, also those that were dropped; kinds
    without a cell are left out."""
    store = Store(folder)
    parts = []
    for kind, title in TITLES.items():
        records: dict[tuple[str, ...], dict[str, Any]] = {}
        for measured in found.rows:
            needs = store.behind(measured.cell)
            row = measured.row.labels()
            place = tuple(str(row[name]) for name in NAMES if name != "attack" or kind == "attack")
            if kind in needs and place not in records:
                records[place] = _settings(store.record(needs[kind]).get("spec", {}))
        if any(records.values()):
            parts.append(_resolved(kind, title, records))
    return parts


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's settings, flat: those of its method behind the method's own name."""
    own = {f"{spec.get('method')}.{name}": value for name, value in spec.get("method_settings", {}).items()}
    return {**spec.get("settings", {}), **own, **({"steps": spec["steps"]} if "steps" in spec else {})}


def _resolved(kind: str, title: str, records: Mapping[tuple[str, ...], Mapping[str, Any]]) -> Resolved:
    names = list(dict.fromkeys(name for record in records.values() for name in record))
    words = {
        name: {place: _word(record[name]) for place, record in records.items() if name in record} for name in names
    }
    # A cell that lacks a setting does not read it, as a plain run those of the meta objective.
    same = {
        name: next(record[name] for record in records.values() if name in record)
        for name in names
        if len(set(words[name].values())) == 1
    }
    others = [name for name in names if name not in same]
    labels = [name for name in NAMES if name != "attack" or kind == "attack"]
    rows = [
        [Entry(part) for part in place] + [Entry(words[name].get(place, "")) for name in others] for place in records
    ]
    table = Table(
        name=f"settings-{kind}", title=f"{title}: where they differ", heads=[*labels, *others], named=len(labels),
        rows=rows,
    )  # fmt: skip
    return Resolved(title=title, same=same, differs=sheet(table) if others else None)


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
