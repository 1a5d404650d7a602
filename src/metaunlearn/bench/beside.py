"""Published tables with our figures in them: ours, the paper's, and the difference, each in a column of its own.

A table has the paper's rows that the grid has, too, measured or not yet. What stands for what is in
bench/counterparts.py; what of a table has nothing to stand beside it is left out and named below it.
"""

from __future__ import annotations

from collections.abc import Sequence

from metaunlearn.bench.beside_layouts import PUBLISHED, Column, Figure, Layout
from metaunlearn.bench.counterparts import both, model_title, same_concept, same_model
from metaunlearn.bench.entries import at, entry_of
from metaunlearn.bench.formats import Entry, Table, slug
from metaunlearn.bench.inputs import BASE
from metaunlearn.bench.lines import by_line
from metaunlearn.bench.published import PAPERS_CONCEPT, PAPERS_MODEL_TITLE, published_rows
from metaunlearn.bench.recipe import CANVAS
from metaunlearn.bench.results import Found, Measured, pooled

BESIDE = (
    "The paper's rows that this grid has, too: our figure with its interval, the paper's as printed, and ours minus "
    "the paper's. Where ours is empty nothing is measured yet."
)
THEIRS = ("paper", "difference")
"""What is said of the columns that stand beside ours."""


def beside_tables(found: Found) -> list[Table]:
    """For each published table that the grid names, one for each concept of which something is measured."""
    tables = []
    for name in found.grid.published:
        title, fill = PUBLISHED[name]
        for concept in found.grid.concepts:
            rows = [measured for measured in found.rows if measured.row.concept == concept.name]
            layout = Layout(grid=found.used, concept=concept)
            fill(layout, published_rows(name))
            if rows and layout.rows and layout.columns:
                tables.append(_table(name, title, layout, found, rows))
    return tables


def _table(name: str, title: str, layout: Layout, found: Found, rows: Sequence[Measured]) -> Table:
    grid, concept = layout.grid, layout.concept
    ours = "ours" if same_model(grid) else model_title(grid)
    lines = by_line(rows)
    apart = not (same_model(grid) and same_concept(concept))
    cells, unlike = [], set()
    for row in layout.rows:
        entries = list(map(Entry, row.names))
        for column, figure in zip(layout.columns, row.figures, strict=True):
            differs = apart or not column.ours.same or (figure is not None and figure.unlike)
            unlike |= {column.head} if differs and figure is not None else set()
            entries += _entries(lines.get(row.line, []), column, figure, len(concept.seeds), unlike=differs)
        cells.append(entries)
    notes = [*_protocols(layout, found, rows), *layout.said(), *_no_error(layout, unlike)]
    left_out = f"Left out, as this grid has nothing to set beside it: {'; '.join(layout.left_out)}."
    return Table(
        name=f"beside-{slug(name)}-{slug(concept.name)}",
        title=f"{title}, {concept.name}: {ours} beside {'the paper' if same_model(grid) else PAPERS_MODEL_TITLE}",
        note=" ".join(notes),
        heads=[*layout.heads, *(f"{column.head}: {whose}" for column in layout.columns for whose in (ours, *THEIRS))],
        named=len(layout.heads),
        rows=cells,
        below=left_out if layout.left_out else "",
        whole=True,
    )


def _entries(
    mine: Sequence[Measured], column: Column, figure: Figure | None, seeds: int, *, unlike: bool
) -> list[Entry]:
    """Ours, the paper's, and ours minus the paper's."""
    if figure is None:
        return [Entry(), Entry(), Entry()]
    digits, factor = column.quantity.digits, column.quantity.factor
    ours = entry_of(pooled(at(mine, figure.place), column.ours.score), seeds, digits, factor=factor)
    papers = Entry(figure.papers, float(figure.papers))
    if ours.value is None:
        return [ours, papers, Entry()]
    difference = ours.value - float(figure.papers)
    signed = f"{difference:+.{digits}f}"
    return [ours, papers, Entry(signed if float(signed) else signed[1:], difference, unlike=unlike)]


def _protocols(layout: Layout, found: Found, rows: Sequence[Measured]) -> list[str]:
    """Model, concept, judges and other settings, in sentences that name both sides."""
    grid, concept = layout.grid, layout.concept
    said = []
    if not same_model(grid):
        given = "" if grid.base == found.grid.base else f" (given with --use {BASE}=)"
        said.append(f"Model: {model_title(grid)}{given}; the paper's: {PAPERS_MODEL_TITLE}.")
    if not same_concept(concept):
        said.append(f"Concept: {concept.name}; the paper's: {PAPERS_CONCEPT}.")
    for column in layout.columns:
        ours, papers = column.ours, column.quantity
        title = f"{both(ours.title, papers.title)}{papers.unit}"
        judge = _judge(column, found, rows)
        said.append(f"{title[0].upper()}{title[1:]}: judged by {judge}; in the paper by {papers.judge}.")
    if found.overrides:
        said.append(f"Settings of erasing over the recipe's (--set): {', '.join(found.overrides)}.")
    return list(dict.fromkeys(said))


def _judge(column: Column, found: Found, rows: Sequence[Measured]) -> str:
    """As the protocol says it; where nothing is measured yet, the one that would be asked."""
    score = column.ours.score
    digests = (measured.scores[score]["protocol"] for measured in rows if score in measured.scores)
    judge = found.protocols.get(next(digests, ""), {}).get("judge")
    own = column.ours.same and column.quantity.like is None
    asked = column.quantity.network or column.quantity.judge if own else found.used.judge or CANVAS
    return str(judge or asked)


def _no_error(layout: Layout, unlike: set[str]) -> list[str]:
    """That some differences are no errors, and which."""
    heads = [column.head for column in layout.columns if column.head in unlike]
    if not heads:
        return []
    which = "The differences" if len(heads) == len(layout.columns) else f"The differences of {', '.join(heads)}"
    return [
        f"{which} are between unlike things, not the same thing measured twice: they are no measure of error, and the "
        "page shows them grey."
    ]
