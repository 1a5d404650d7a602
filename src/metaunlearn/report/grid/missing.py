"""What is there of a grid that is not finished, and what is missing."""

from __future__ import annotations

from collections import Counter

from metaunlearn.bench.formats import Entry, Table
from metaunlearn.bench.lines import Line, names_of
from metaunlearn.bench.plan import states
from metaunlearn.bench.results import Found


def missing_table(found: Found) -> Table:
    """Measured states of all, by model and by concept and seed."""
    wanted = [
        (Line(state.method, state.variant, state.model), state.concept, state.seed) for state in states(found.grid)
    ]
    in_all = Counter(wanted)
    there = Counter((Line(m.row.method, m.row.variant, m.row.model), m.row.concept, m.row.seed) for m in found.rows)
    lines = list(dict.fromkeys(line for line, _, _ in wanted))
    places = sorted({(concept, seed) for _, concept, seed in wanted})
    heads, names = names_of(lines)
    rows = [
        [*map(Entry, names[line]), *(_entry(there[line, *place], in_all[line, *place]) for place in places)]
        for line in lines
    ]
    return Table(
        name="missing",
        title="States measured, of all",
        heads=[*heads, *(f"{concept}, seed {seed}" for concept, seed in places)],
        named=len(heads),
        rows=rows,
    )


def _entry(there: int, in_all: int) -> Entry:
    return Entry(f"{there} of {in_all}", there / in_all) if in_all else Entry()
