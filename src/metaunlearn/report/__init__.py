"""Results in a folder → one self-contained HTML page, and the same facts as plain data for the command line."""

from __future__ import annotations

from metaunlearn.report.data import ModelScores, Score, Scores, Summary, read_summary
from metaunlearn.report.page import build_report
from metaunlearn.report.story import Cell, HalfBack, Headline, Row, headline, rows

__all__ = [
    "Cell",
    "HalfBack",
    "Headline",
    "ModelScores",
    "Row",
    "Score",
    "Scores",
    "Summary",
    "build_report",
    "headline",
    "read_summary",
    "rows",
]
