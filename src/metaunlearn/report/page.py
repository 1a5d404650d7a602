"""The page itself: everything that a folder holds, put into the template, written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metaunlearn.errors import UserError
from metaunlearn.files import write_atomic
from metaunlearn.report.data import SAMPLES_FILE, SUMMARY_FILE, Sample, Summary, read_samples, read_summary
from metaunlearn.report.runs import RESULTS_FILE, RunCard, ScoreTable, read_runs, read_scores
from metaunlearn.report.sections import Metric, grids, loss_panels, panels, self_destruction
from metaunlearn.report.story import MODEL_TITLES, headline, percent, rows
from metaunlearn.runs import LOG_FILE, RUN_FILE

REPORT_FILE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def build_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from what lies in ``folder``; one file that needs no network and no script.

    Raises UserError when the folder holds nothing to report, or a file that cannot be what its name says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds results (folder=..., metaunlearn report DIR).")
    summary, samples = read_summary(folder), read_samples(folder)
    cards, tables = ([], []) if summary else (read_runs(folder), read_scores(folder))
    if summary is None and not (samples or cards or tables):
        raise UserError(
            f"{folder} holds no results: looked for {SUMMARY_FILE} and {SAMPLES_FILE} in it, and for {RUN_FILE}, "
            f"{LOG_FILE} and {RESULTS_FILE} in it and below. `metaunlearn demo --out DIR` makes all of them; "
            "`metaunlearn erase`, `attack` and `evaluate` make theirs."
        )
    path = folder / REPORT_FILE
    write_atomic(path, _render(folder, summary, samples, cards, tables))
    return path


def _render(
    folder: Path, summary: Summary | None, samples: list[Sample], cards: list[RunCard], tables: list[ScoreTable]
) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=_points, figure=_figure, words=_words, json=_json)
    values: dict[str, Any] = {
        "name": folder.resolve().name,
        "style": Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "summary": summary,
        "titles": MODEL_TITLES,
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
    return environment.get_template("report.html.j2").render(values)


_COLLATERAL: tuple[tuple[str, Metric], ...] = (("Related concepts", "related"), ("Unrelated concepts", "unrelated"))


def _points(value: float, like: float | None = None) -> str:
    """A signed difference, with as many decimals as the figure ``like`` that it belongs to."""
    text = f"{value:+.{_decimals(like)}f}"
    return f"±{text[1:]}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _figure(value: float, like: float | None = None) -> str:
    """A measured figure with the decimals of ``like``; None stands for a percentage."""
    return f"{value:.{_decimals(like)}f}".replace("-", "\N{MINUS SIGN}")


def _decimals(like: float | None) -> int:
    """Three significant digits for what is no percentage; one decimal for percentages."""
    if like is None or abs(like) >= 10:
        return 1
    return 2 if abs(like) >= 1 else 3 if abs(like) >= 0.1 else 4


def _words(value: object) -> str:
    """A setting as a reader wants it: no Python spelling."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(_words(part) for part in value)
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
