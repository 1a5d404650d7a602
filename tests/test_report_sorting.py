"""How the tables of a bench's page sort, in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench_grids import GRID, SEEN, changed, found_with
from browser import in_frames, needs_chromium
from metaunlearn.bench.plan import states
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.results import Measured
from metaunlearn.report.page import build_report
from metaunlearn.settings import resolve

pytestmark = needs_chromium


def clicked(folder: Path, report: Path, head: str) -> list[str]:
    """The rows' names, one click on the first column called ``head`` after the other: the order that it says, and them.

    Before the clicks, as made, and whether the button has the focus.
    """
    script = f"""
        const head = [...inner.querySelectorAll('table.sortable th')].find((one) => one.textContent === '{head}');
        const button = head.querySelector('button'), rows = head.closest('table').tBodies[0].rows;
        const name = (row) => row.cells[0].textContent.trim();
        const seen = () => [...rows].map(name).join(', ');
        const all = [seen()];
        button.focus();
        all.push(inner.activeElement === button);
        for (let i = 0; i < 3; i += 1) {{ button.click(); all.push(head.getAttribute('aria-sort'), seen()); }}
        found = all.join('; ');"""
    return in_frames(folder, report, (1280,), script)["1280"].split("; ")


def orders(made: list[str], ascending: list[str], descending: list[str]) -> list[str]:
    """What :func:`clicked` then finds."""
    rows = {"": made, "ascending": ascending, "descending": descending, "none": made}
    first, *others = [part for order, names in rows.items() for part in (order, ", ".join(names))][1:]
    return [first, "true", *others]


def test_tables_are_sorted_by_a_focusable_button(bench_page: Path, tmp_path: Path) -> None:
    """By HRM-m 2: plain 90.0, meta 15.0 as made; ascending, descending, as made. The button takes the focus."""
    assert SEEN["unlearn"]["HRM-m", 2] == (8, 10)
    made = ["esd-x-1 unlearn", "esd-x-1 meta-unlearn"]
    assert clicked(tmp_path, bench_page, "HRM-m 2") == orders(made, made[::-1], made)


PERCENT = {"esd-u-1": (0, 0), "sdd": (80, 20), "esd-x-1": (40, 60)}
"""After one step and two of an attack on the plain and on the meta-unlearned model, by method."""


@pytest.fixture
def methods_page(tmp_path: Path) -> Path:
    """Of ``PERCENT``; the original shows the concept in every picture, and nothing else does before the attack."""
    grid = changed("concepts", 0, "seeds", to=[0], of=changed("methods", to=list(PERCENT), of=GRID))
    resolved = resolve(Grid, changed("models", to=["original", "unlearn", "meta-unlearn"], of=grid))
    rows = []
    for number, state in enumerate(states(resolved)):
        attacked = PERCENT[state.method][state.model == "meta-unlearn"] if state.step else 0
        value = 100.0 if state.model == "original" else float(attacked)
        score = {"value": value, "low": value, "high": value, "n": 10, "hits": round(value / 10), "protocol": "p"}
        rows.append(Measured(state, f"measure-{number}", {"concept": score}))
    (tmp_path / "results.json").write_text(
        json.dumps(found_with([], grid=resolved, rows=rows, rows_in_all=len(rows)).to_dict())
    )
    return build_report(tmp_path)


@pytest.mark.parametrize("head", ["HRM-m: half back", "half back first"])
def test_what_never_comes_back_lies_behind_what_does(head: str, methods_page: Path, tmp_path: Path) -> None:
    """Half of 100 % is back at step 50 / 80 in sdd's plain model and 50 / 60 in esd-x-1's other; elsewhere never."""
    made = [f"{method} {model}" for method in PERCENT for model in ("unlearn", "meta-unlearn")]
    back = ["sdd unlearn", "esd-x-1 meta-unlearn"]
    never = [name for name in made if name not in back]
    assert clicked(tmp_path, methods_page, head) == orders(made, back + never, never + back[::-1])


def test_a_dash_stays_last(methods_page: Path, tmp_path: Path) -> None:
    """meta / plain is 20 / 80 by sdd and 60 / 40 by esd-x-1; by esd-u-1 the plain model shows nothing."""
    made = list(PERCENT)
    expected = orders(made, ["sdd", "esd-x-1", "esd-u-1"], ["esd-x-1", "sdd", "esd-u-1"])
    assert clicked(tmp_path, methods_page, "knife, seed 0") == expected
