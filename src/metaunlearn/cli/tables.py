"""Scores as plain text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaunlearn.report.story import Cell

WIDTH = 120
"""Columns at most."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows`` under ``columns``; the first column to the left, figures to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    printer = Console(width=WIDTH, no_color=True, highlight=False, markup=False)
    with printer.capture() as captured:
        printer.print(drawn)
    return "\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip())


def figure(value: float, low: float | None, high: float | None) -> str:
    """``"12.0 [8.1, 17.2]"``, or the value alone where no interval was measured."""
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def story_lines(summary: Mapping[str, Any]) -> list[str]:
    """The headline of a ``summary.json``, and its table: scores in percent with their 95 % intervals."""
    from metaunlearn.report.story import headline, rows

    def cell(found: Cell | None) -> str:
        return "" if found is None else figure(*found.score)

    found = rows(summary)
    names = [f"{row.model}, {row.state}" for row in found]
    concepts = [(*map(cell, (row.concept, row.related, row.unrelated)),) for row in found]
    pictures = [(*map(cell, (row.clip_score, row.fid)),) for row in found]
    lines = [headline(summary).text]
    # Together, with all their intervals, they are wider than a terminal.
    for heads, cells in (
        ((str(summary["concept"]), "related", "unrelated"), concepts),
        (("CLIP score", "FID"), pictures),
    ):
        lines += ["", table(("model", *heads), [(name, *row) for name, row in zip(names, cells, strict=True)])]
    return lines


def scores_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """``results.json`` as a table."""
    lines = [
        (name, figure(score["value"], score.get("low"), score.get("high")), str(score.get("n", "")))
        for name, score in results.items()
    ]
    return table(("metric", "value [95 % interval]", "n"), lines)
