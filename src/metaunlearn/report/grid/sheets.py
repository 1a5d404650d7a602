"""A table as the page shows it, with its CSV and its LaTeX to be saved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import quote

from metaunlearn.bench.formats import Table, to_csv, to_latex
from metaunlearn.report.data import MODELS


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table, and its files as data URIs."""

    table: Table
    csv: str
    latex: str
    models: list[str]
    """Of each row: the model that it is about, or nothing."""


def sheet(table: Table) -> Sheet:
    """``table`` ready for the page, without columns that say nothing, unless it is to be whole."""
    table = table if table.whole else _narrowed(table)
    named = [[entry.text for entry in row[: table.named]] for row in table.rows]
    return Sheet(
        table=table,
        csv=f"data:text/csv;charset=utf-8,{quote(to_csv(table))}",
        latex=f"data:application/x-tex;charset=utf-8,{quote(to_latex(table))}",
        models=[next((model for model in MODELS if model in texts), "") for texts in named],
    )


def _narrowed(table: Table) -> Table:
    kept = [place for place in range(len(table.heads)) if any(row[place].text for row in table.rows)]
    return replace(
        table,
        heads=[table.heads[place] for place in kept],
        named=sum(place < table.named for place in kept),
        rows=[[row[place] for place in kept] for row in table.rows],
    )
