"""``--only``: a part of a grid."""

from __future__ import annotations

from collections.abc import Sequence

from metaunlearn.bench.plan import Plan, Row
from metaunlearn.errors import UserError, did_you_mean

KEYS = ("concept", "seed", "method", "variant", "model", "attack", "step", "cell")


def select(plan: Plan, only: Sequence[str]) -> list[Row]:
    """The rows for which every key of ``only`` (``["seed=0", "method=sdd", "method=uce"]``) has one of its values.

    ``cell=NAME`` takes the rows that need the cell whose name begins so.
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
    return [row for row in plan.rows if all(_matches(plan, row, key, values) for key, values in wanted.items())]


def _matches(plan: Plan, row: Row, key: str, values: set[str]) -> bool:
    if key != "cell":
        return str(row.labels()[key]) in values
    return any(cell.name.startswith(value) for cell in plan.behind([row]) for value in values)
