"""The page of a grid, from ``results.json`` and what its cells keep."""

from __future__ import annotations

from pathlib import Path

from metaunlearn.bench.beside import BESIDE, beside_tables
from metaunlearn.bench.formats import Table
from metaunlearn.bench.published import differs, published_tables
from metaunlearn.bench.results import Found, found_in
from metaunlearn.bench.tables import NOTE, concept_tables, ratio_tables
from metaunlearn.errors import UserError
from metaunlearn.files import read_json
from metaunlearn.report.grid.curves import attack_charts
from metaunlearn.report.grid.headline import headline
from metaunlearn.report.grid.missing import missing_table
from metaunlearn.report.grid.pictures import concept_pictures
from metaunlearn.report.grid.settings import grid_settings, resolved
from metaunlearn.report.grid.sheets import sheet
from metaunlearn.report.grid.survey import surveys
from metaunlearn.report.grid.trends import trends
from metaunlearn.report.rendering import render
from metaunlearn.runs import RESULTS_FILE


def grid_page(folder: Path) -> str:
    """HTML of the grid whose ``results.json`` lies in ``folder``, its cells there or in the folder above.

    UserError when nothing of it is measured or a file of it is broken.
    """
    found = _read(folder)
    bench = folder if (folder / "cells").is_dir() else folder.parent
    ratio = ratio_tables(found)
    concepts = [concept for concept in found.grid.concepts if any(m.row.concept == concept.name for m in found.rows)]
    pictures = concept_pictures(found, bench)
    return render(
        "grid.html.j2",
        scripts=("sort.js",),
        found=found,
        head=headline(found),
        missing=_sheets([missing_table(found)] if len(found.rows) < found.rows_in_all else []),
        ratios=_sheets(ratio),
        curves=[(concept.name, charts) for concept in concepts if (charts := attack_charts(found, concept))],
        surveys=[survey for concept in concepts for survey in surveys(found, concept)],
        tables=_sheets([table for concept in concepts for table in concept_tables(found, concept)]),
        note=NOTE,
        beside=_sheets(beside_tables(found)),
        beside_note=BESIDE,
        published=_sheets(published_tables(found.grid.published)),
        differs=differs(found.used.base),
        pictures=pictures,
        any_sensitive=any(
            shot.sensitive for _, grids in pictures for grid in grids for strip in grid.strips for shot in strip.shots
        ),
        trends=trends(found, bench),
        settings=grid_settings(found.used),
        resolved=resolved(found, bench),
    )


def _read(folder: Path) -> Found:
    path = folder / RESULTS_FILE
    more = "`metaunlearn bench RECIPE --out DIR` goes on with it and writes the report when it is done."
    if not path.is_file():
        raise UserError(f"{folder} holds a bench without {RESULTS_FILE}: no state of it is measured yet. {more}")
    try:
        found = found_in(read_json(path))
    except (KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} is not what metaunlearn bench writes ({type(error).__name__}: {error}); call the bench again, "
            "which rewrites it from its cells."
        ) from error
    if not found.rows:
        raise UserError(f"{folder} holds no results: no state of the grid {found.bench} is measured yet. {more}")
    return found


def _sheets(tables: list[Table]) -> list[object]:
    return [sheet(table) for table in tables]
