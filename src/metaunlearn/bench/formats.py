"""A table of figures with their intervals, and its text as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Entry:
    """One cell of a table: words, or a figure as it is printed."""

    text: str = ""
    value: float | None = None
    """What the figure is compared by; None: words, or nothing measured."""
    low: str = ""
    high: str = ""
    """The interval as it is printed; empty without one."""
    note: str = ""
    """Said of this figure, in brackets."""
    unlike: bool = False
    """Whether it is a difference of things that are not alike, which measures no error: the page shows it grey."""

    def __str__(self) -> str:
        interval = f" [{self.low}, {self.high}]" if self.low else ""
        return f"{self.text}{interval}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table."""

    name: str
    """Of a file with it, without the ending: letters, digits and hyphens."""
    title: str
    note: str = ""
    heads: Sequence[str]
    """Of the columns."""
    named: int
    """How many of the columns, the first ones, say what a row is about."""
    rows: Sequence[Sequence[Entry]]
    """Each as long as ``heads``."""
    below: str = ""
    """Said under the table."""
    whole: bool = False
    """Whether the page keeps columns with nothing in them."""


def turned(table: Table, head: str) -> Table:
    """``table`` with its lines across and its columns down, under ``head``."""
    columns = [" ".join(filter(None, (entry.text for entry in row[: table.named]))) for row in table.rows]
    rows = [
        [Entry(table.heads[place]), *(row[place] for row in table.rows)]
        for place in range(table.named, len(table.heads))
    ]
    return replace(table, heads=[head, *columns], named=1, rows=rows)


def slug(text: str) -> str:
    """``text`` as part of a file's name: ``HRM-m 10`` is ``hrm-m-10``."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


def to_markdown(table: Table) -> str:
    """A Markdown table; all but the first column to the right."""
    return in_markdown(table.heads, [[str(entry) for entry in row] for row in table.rows], under="--:")


def in_markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], *, under: str = "---") -> str:
    """The same of plain words; ``under`` is what stands under all heads but the first, and sets their columns."""
    rule = ["---", *[under] * (len(heads) - 1)]
    words = [[_cell(text) for text in line] for line in (heads, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (words[0], rule, *words[1:]))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def to_csv(table: Table) -> str:
    """CSV; a column with intervals is followed by its low and high ends, one with notes by them."""
    lines: list[list[str]] = [[] for _ in range(1 + len(table.rows))]

    def add(head: str, texts: Sequence[str]) -> None:
        for line, text in zip(lines, [head, *texts], strict=True):
            line.append(text)

    for head, column in zip(table.heads, zip(*table.rows, strict=True), strict=True):
        add(head, [entry.text for entry in column])
        if any(entry.low for entry in column):
            add(f"{head}, low", [entry.low for entry in column])
            add(f"{head}, high", [entry.high for entry in column])
        if any(entry.note for entry in column):
            add(f"{head}, note", [entry.note for entry in column])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "–": "--", "—": "---", "’": "'", "…": r"\dots{}", "−": "$-$", "±": r"$\pm$",
    "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$",
    "→": r"$\rightarrow$", "∞": r"$\infty$",
}  # fmt: skip
_SMALL = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega"
)
_LARGE = "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
_LATEX |= {
    letter: rf"$\{name}$"
    for letters, names in (("αβγδεζηθικλμνξπρστυφχψω", _SMALL), ("ΓΔΘΛΞΠΣΥΦΨΩ", _LARGE))
    for letter, name in zip(letters, names.split(), strict=True)
}
_LATEX |= {
    letter: rf"\text{place}script{{{digit}}}"
    for place, letters in (("sub", "₀₁₂₃₄₅₆₇₈₉"), ("super", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    for digit, letter in enumerate(letters)
}


def to_latex(table: Table) -> str:
    r"""A ``table*`` for the package booktabs; the interval stands small behind its figure."""
    layout = "l" * table.named + "r" * (len(table.heads) - table.named)
    lines = [" & ".join(_latex(entry) for entry in row) + r" \\" for row in table.rows]
    return "\n".join([
        r"\begin{table*}", r"\centering", rf"\caption{{{_escaped(table.title)}}}", rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule", " & ".join(map(_escaped, table.heads)) + r" \\", r"\midrule", *lines, r"\bottomrule",
        r"\end{tabular}", r"\end{table*}", "",
    ])  # fmt: skip


def _latex(entry: Entry) -> str:
    small = [f"[{entry.low}, {entry.high}]"] * bool(entry.low) + [f"({entry.note})"] * bool(entry.note)
    return _escaped(entry.text) + (rf" {{\scriptsize {_escaped(' '.join(small))}}}" if small else "")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
