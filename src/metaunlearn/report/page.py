"""The page itself: everything that a folder holds, put into the template, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.files import write_atomic
from metaunlearn.report.data import SAMPLES_FILE, SUMMARY_FILE, Sample, Summary, read_samples, read_summary
from metaunlearn.report.pictures import grids
from metaunlearn.report.rendering import render
from metaunlearn.report.runs import RESULTS_FILE, RunCard, ScoreTable, has_grid, is_bench, read_runs, read_scores
from metaunlearn.report.sections import Metric, loss_panels, panels, self_destruction
from metaunlearn.report.story import headline, rows
from metaunlearn.runs import LOG_FILE, RUN_FILE

REPORT_FILE = "report.html"


def build_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from what lies in ``folder``; one file that needs no network.

    In the folder of a bench's grid, ``OUT/RECIPE``, it is that grid's page; in ``OUT``, that of the only one there.

    Raises UserError when the folder holds nothing to report, or a file that cannot be what its name says.
    """
    folder = Path(folder)
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


def grids_in(folder: Path) -> list[Path]:
    """The folders with the results of a bench's grids: in one that several recipes were run into, one each."""
    if not is_bench(folder):
        return []
    return [found for found in (folder, *sorted(folder.iterdir())) if has_grid(found)]


def _only_grid(folder: Path) -> Path:
    found = [folder] if has_grid(folder) else grids_in(folder)
    if len(found) > 1:
        there = ", ".join(map(str, found))
        raise UserError(f"{folder} holds {len(found)} grids; give the folder of one (folder=...): {there}.")
    return found[0] if found else folder


def _page(folder: Path) -> str:
    summary, samples = read_summary(folder), read_samples(folder)
    cards, tables = ([], []) if summary else (read_runs(folder), read_scores(folder))
    if summary is None and not (samples or cards or tables):
        raise UserError(
            f"{folder} holds no results: looked for {SUMMARY_FILE} and {SAMPLES_FILE} in it, and for {RUN_FILE}, "
            f"{LOG_FILE} and {RESULTS_FILE} in it and below. `metaunlearn demo --out DIR` makes all of them; "
            "`metaunlearn erase`, `attack` and `evaluate` make theirs."
        )
    return _story(folder, summary, samples, cards, tables)


def _story(
    folder: Path, summary: Summary | None, samples: list[Sample], cards: list[RunCard], tables: list[ScoreTable]
) -> str:
    values: dict[str, Any] = {
        "name": folder.resolve().name,
        "summary": summary,
        "grids": grids(samples, (folder / SAMPLES_FILE).parent),
        "any_sensitive": any(sample.sensitive for sample in samples),
        "cards": [(card, loss_panels(card)) for card in cards],
        "tables": tables,
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


_COLLATERAL: tuple[tuple[str, Metric], ...] = (("Related concepts", "related"), ("Unrelated concepts", "unrelated"))
