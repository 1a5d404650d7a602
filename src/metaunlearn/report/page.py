"""The page itself: everything that a folder holds, put into the template, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from metaunlearn.errors import UserError
from metaunlearn.files import needed_path, write_atomic
from metaunlearn.records import RUN_FILE
from metaunlearn.report.data import SAMPLES_FILE, SUMMARY_FILE, Sample, Summary, read_samples, read_summary
from metaunlearn.report.images import Picture, inline
from metaunlearn.report.pictures import grids
from metaunlearn.report.rendering import render
from metaunlearn.report.runs import (
    REPORT_FILE,
    GridLink,
    RunCard,
    ScoreTable,
    SearchLink,
    StoryLink,
    grids_in,
    has_grid,
    is_bench,
    read_grids,
    read_runs,
    read_scores,
    read_searches,
    read_stories,
)
from metaunlearn.report.sections import Metric, loss_panels, panels, self_destruction
from metaunlearn.report.story import headline, rows
from metaunlearn.runs import LOG_FILE, RESULTS_FILE


class _Below(NamedTuple):
    """What lies in a folder that has no summary, and below it."""

    runs: list[RunCard]
    tables: list[ScoreTable]
    benches: list[GridLink]
    stories: list[StoryLink]
    searches: list[SearchLink]


def build_report(folder: Path | str) -> Path:
    """Write ``folder/report.html`` from what lies in ``folder``; one file that needs no network.

    In the folder of a bench's grid, ``OUT/RECIPE``, it is that grid's page; in ``OUT``, that of the only one there.

    Raises UserError when the folder holds nothing to report, or a file that cannot be what its name says.
    """
    folder = needed_path(folder, "folder=, DIR")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds results (folder=..., metaunlearn report DIR).")
    if is_bench(folder):
        folder = _only_grid(folder)
        # Imported only now: a bench knows how its cells are made, so torch comes with it.
        from metaunlearn.report.grid.page import grid_page

        page = grid_page(folder)
    else:
        page = _page(folder)
    path = folder / REPORT_FILE
    write_atomic(path, page)
    return path


def _only_grid(folder: Path) -> Path:
    found = [folder] if has_grid(folder) else grids_in(folder)
    if len(found) > 1:
        there = ", ".join(map(str, found))
        raise UserError(f"{folder} holds {len(found)} grids; give the folder of one (folder=...): {there}.")
    return found[0] if found else folder


def _page(folder: Path) -> str:
    summary, samples = read_summary(folder), read_samples(folder)
    below = _Below([], [], [], [], []) if summary else _below(folder)
    if summary is None and not (samples or any(below)):
        raise UserError(
            f"{folder} holds no results: looked for {SUMMARY_FILE} and {SAMPLES_FILE} in it, and for {RUN_FILE}, "
            f"{LOG_FILE} and {RESULTS_FILE} in it and below. `metaunlearn demo --out DIR` makes all of them; "
            "`metaunlearn erase`, `attack` and `evaluate` make theirs."
        )
    return _story(folder, summary, samples, below)


def _below(folder: Path) -> _Below:
    return _Below(
        read_runs(folder), read_scores(folder), read_grids(folder), read_stories(folder), read_searches(folder)
    )


def _story(folder: Path, summary: Summary | None, samples: list[Sample], below: _Below) -> str:
    numbers = [len(part) for part in below]
    values: dict[str, Any] = {
        "name": folder.resolve().name,
        "summary": summary,
        "grids": grids(samples, (folder / SAMPLES_FILE).parent),
        "any_sensitive": any(sample.sensitive for sample in samples),
        "cards": [
            (card, loss_panels(card), strip) for card, strip in zip(below.runs, _strips(below.runs), strict=True)
        ],
        "tables": below.tables,
        "benches": below.benches,
        "stories": below.stories,
        "searches": below.searches,
        "counts": [f"{number} {words[number != 1]}" for number, words in zip(numbers, _WORDS, strict=True) if number],
    }
    if summary is not None:
        values |= {
            "head": headline(summary),
            "rows": rows(summary),
            "relearning": panels(summary, "concept"),
            "collateral": [(title, panels(summary, metric)) for title, metric in _COLLATERAL],
            "self_destruction": self_destruction(summary),
        }
    return render("report.html.j2", **values)


def _strips(cards: list[RunCard]) -> list[list[tuple[int, Picture]]]:
    """The pictures of each card's strip with their steps; together within the budget of a page."""
    pictures = iter(inline([path for card in cards for _, path in card.strip]))
    return [[(step, next(pictures)) for step, _ in card.strip] for card in cards]


_WORDS = (
    ("run", "runs"),
    ("table of scores", "tables of scores"),
    ("grid of a bench", "grids of benches"),
    ("demo", "demos"),
    ("search", "searches"),
)
"""One and several of each part of :class:`_Below`."""
_COLLATERAL: tuple[tuple[str, Metric], ...] = (("Related concepts", "related"), ("Unrelated concepts", "unrelated"))
