"""``--only``: a part of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metaunlearn.bench.cells import Cell
from metaunlearn.bench.plan import Plan, Row
from metaunlearn.errors import UserError, did_you_mean

KEYS = ("concept", "seed", "method", "variant", "model", "attack", "step", "cell")


class Part(NamedTuple):
    """What a call asks for; never empty."""

    rows: list[Row]
    """States that are measured; none where only cells behind them are asked for."""
    cells: list[Cell]
    """What has to be there in the end, those of ``rows`` among them."""


def select(plan: Plan, only: Sequence[str]) -> Part:
    """The rows for which every key of ``only`` (``["seed=0", "method=sdd", "method=uce"]``) has one of its values.

    ``cell=NAME`` takes of what these rows need the cells whose names begin so, and nothing that needs those. UserError
    when nothing is left.
    """
    wanted: dict[str, set[str]] = {}
    for item in only:
        key, separator, value = item.partition("=")
        if not separator or key not in KEYS:
            raise UserError(
                f"expected KEY=VALUE with KEY one of {', '.join(KEYS)}, got {item!r} (only=[...], --only)."
                f"{did_you_mean(key, KEYS)}"
            )
        known = sorted({str(row.labels()[key]) for row in plan.rows}) if key != "cell" else list(plan.cells)
        if not any(name.startswith(value) if key == "cell" else name == value for name in known):
            listed = "" if key == "cell" else f" It has: {', '.join(name or '(none)' for name in known)}."
            raise UserError(
                f"the grid has no {key} {value!r} (only=[...], --only).{did_you_mean(value, known)}{listed}"
            )
        wanted.setdefault(key, set()).add(value)
    names = tuple(wanted.pop("cell", ()))
    part = _part(plan, wanted, names)
    if not part.cells:
        raise UserError(
            f"nothing of the grid is all of {', '.join(only)} (only=[...], --only): of one key given twice either "
            "value will do, different keys must all hold. Leave one out; --dry-run lists what there is."
        )
    return part


def _part(plan: Plan, wanted: Mapping[str, set[str]], names: tuple[str, ...]) -> Part:
    rows = [row for row in plan.rows if all(str(row.labels()[key]) in values for key, values in wanted.items())]
    if not names:
        return Part(rows, list(dict.fromkeys(row.cell for row in rows)))
    cells = [cell for cell in plan.with_needs(row.cell for row in rows) if cell.name.startswith(names)]
    return Part([row for row in rows if row.cell.name.startswith(names)], cells)
