"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io

from metaunlearn.bench.formats import Entry, Table, slug, to_csv, to_latex, to_markdown

TABLE = Table(
    name="tiny",
    title="100 % of a_b & c",
    heads=["method", "HRM-m 10", "share"],
    named=1,
    rows=[
        [Entry("esd-u-1"), Entry("4.0", 4.0, "2.0", "7.7", "1 of 2 seeds"), Entry("0.25", 0.25)],
        [Entry("a, \\{b}"), Entry(), Entry("–")],
    ],
)


def test_markdown_keeps_interval_and_note() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[2] == "| esd-u-1 | 4.0 [2.0, 7.7] (1 of 2 seeds) | 0.25 |"
    assert lines[1] == "| --- | --: | --: |"


def test_csv_has_intervals_and_notes_in_columns_of_their_own() -> None:
    lines = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert lines == [
        ["method", "HRM-m 10", "HRM-m 10, low", "HRM-m 10, high", "HRM-m 10, note", "share"],
        ["esd-u-1", "4.0", "2.0", "7.7", "1 of 2 seeds", "0.25"],
        ["a, \\{b}", "", "", "", "", "–"],
    ]


def test_latex_is_escaped_and_keeps_the_interval() -> None:
    text = to_latex(TABLE)
    assert r"\caption{100 \% of a\_b \& c}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"esd-u-1 & 4.0 {\scriptsize [2.0, 7.7] (1 of 2 seeds)} & 0.25 \\" in text
    assert r"a, \textbackslash{}\{b\} &  & -- \\" in text


def test_names_of_files() -> None:
    assert slug("HRM-m 10") == "hrm-m-10"
    assert slug("../a b") == "a-b"
