"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from metaunlearn.bench.formats import Entry, Table, slug, to_csv, to_latex, to_markdown
from metaunlearn.bench.recipe import read_bench
from metaunlearn.recipe import read_recipe, recipe_names

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


def test_a_bar_in_a_name_ends_no_cell() -> None:
    table = replace(TABLE, heads=["method", "a|b", "share"], rows=[[Entry("x|y"), Entry("1", note="p|q"), Entry()]])
    lines = to_markdown(table).splitlines()
    assert lines[0] == r"| method | a\|b | share |"
    assert lines[2] == r"| x\|y | 1 (p\|q) |  |"


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


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("the paper's, λ 0.2", r"the paper's, $\lambda$ 0.2"),
        ("bounded, γ₂ 10", r"bounded, $\gamma$\textsubscript{2} 10"),
        ("Ω, ω, π, φ × 10³", r"$\Omega$, $\omega$, $\pi$, $\phi$ $\times$ 10\textsuperscript{3}"),
        ("a|b < −1 ≤ … → ∞", r"a\textbar{}b \textless{} $-$1 $\leq$ \dots{} $\rightarrow$ $\infty$"),
    ],
    ids=["Greek", "subscript", "more of both", "signs"],
)
def test_latex_has_no_letter_that_pdflatex_lacks(text: str, latex: str) -> None:
    assert rf"\caption{{{latex}}}" in to_latex(replace(TABLE, title=text))
    assert to_latex(replace(TABLE, title=text)).isascii()


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if read_recipe(name).kind == "grid"])
def test_names_of_the_shipped_grids_can_be_set(recipe: str) -> None:
    grid = read_bench(recipe).grid
    names = [item.name for items in (grid.variants, grid.attacks, grid.concepts) for item in items]
    assert to_latex(replace(TABLE, heads=names, named=1, rows=[])).isascii()


def test_names_of_files() -> None:
    assert slug("HRM-m 10") == "hrm-m-10"
    assert slug("../a b") == "a-b"
