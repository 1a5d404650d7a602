"""The table of relearning curves in numbers, from rows that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench_grids import MANY, changed
from metaunlearn.bench.formats import Table
from metaunlearn.bench.plan import states
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.relearned import relearning_tables
from metaunlearn.bench.results import EACH, Found, Measured
from metaunlearn.metrics.relearning import relearning
from metaunlearn.settings import resolve

ATTACKS = [
    {"name": "slow", "data": "hrm-m", "pictures": 2},
    {"name": "fast", "data": "hrm-m", "pictures": 2},
    {"name": "bits", "kind": "quantize", "strengths": [8, 4]},
    {"name": "CLEAN", "data": "clean"},
]
HITS = {"slow": (0, 2, 4, 10), "fast": (0, 8, 6, 6), "bits": (9, 5), "CLEAN": (10, 10, 10, 10)}
"""Of ten pictures, after one step to four or at 8 and 4 bits, in the meta-unlearned model; in others none."""


def seen(hits: int) -> str:
    """The first ``hits`` of ten pictures."""
    return "1" * hits + "0" * (10 - hits)


def made_up(each: bool = True) -> Found:
    """Two seeds of which the second shows one picture less, where it shows any."""
    grid = resolve(Grid, changed("attacks", to=ATTACKS, of=changed("concepts", 0, "seeds", to=[0, 1], of=MANY)))
    rows = []
    for number, state in enumerate(states(grid)):
        hits = 0
        if state.model == "original":
            hits = 10
        elif state.model == "meta-unlearn" and state.attack in HITS:
            levels = (8, 4) if state.attack == "bits" else (1, 2, 3, 4)
            hits = max(0, HITS[state.attack][levels.index(int(state.step))] - state.seed)
        score = {"value": 10.0 * hits, "low": 0.0, "high": 0.0, "n": 10, "hits": hits, "protocol": "p"}
        rows.append(Measured(state, f"measure-{number}", {"concept": score | ({EACH: seen(hits)} if each else {})}))
    return Found(
        bench="tiny", description="", overrides=(), grid=grid, rows_in_all=len(rows), rows=rows, protocols={},
        versions={},
    )  # fmt: skip


def table_of(found: Found) -> Table:
    (table,) = relearning_tables(found, found.grid.concepts[0])
    return table


def line_of(found: Found) -> dict[str, str]:
    """The meta-unlearned model's, by column."""
    table = table_of(found)
    (row,) = [row for row in table.rows if row[table.named - 1].text == "meta-unlearn"]
    return dict(zip(table.heads, map(str, row), strict=True))


def test_heights_halves_and_the_worst() -> None:
    """Of both seeds together slow has 0, 0, 15, 35 and 95 % at the steps 0 to 4, fast 0, 0, 75, 55 and 55; at 8 bits
    85 % are seen. Half of 100 % is back 50 / 75 of the way from step 1 to 2."""
    line = line_of(made_up(each=False))
    assert line["slow: on average (%)"] == "24.4"  # (0 + 0) / 2 + 15 / 2 + 25 + 65 over 4
    assert line["slow: half back"] == "3"  # 3.25
    assert line["fast: half back"] == "2"  # 0 at one step, 75 at two: 1.67
    assert line["worst (%)"] == "95.0 (slow)"
    assert line["half back first"] == "2 (fast)"
    assert not any(head.startswith("bits") for head in line)


def test_what_was_there_before_is_no_attacks_doing() -> None:
    """All of it before, and under the attacks at most 95 %: the worst is what an attack has, not what there was."""
    found = made_up(each=False)
    rows = [
        replace(one, scores={"concept": {**one.scores["concept"], "value": 100.0, "hits": 10}})
        if (one.row.model, one.row.attack) == ("meta-unlearn", "before")
        else one
        for one in found.rows
    ]
    line = line_of(replace(found, rows=rows))
    assert line["worst (%)"] == "95.0 (slow)"


def test_intervals_are_those_of_the_pictures_themselves() -> None:
    hits = torch.tensor(
        [[int(x) for x in seen(0) * 2]] * 2 + [[int(x) for x in seen(n) + seen(n - 1)] for n in (2, 4, 10)]
    )
    expected = relearning([0, 1, 2, 3, 4], hits, 100.0, torch.Generator().manual_seed(0))
    line = line_of(made_up())
    assert line["slow: on average (%)"] == f"24.4 [{expected.area.low:.1f}, {expected.area.high:.1f}]"
    assert line["slow: half back"] == f"3 [{expected.half_low:.0f}, {expected.half_high:.0f}]"


def test_what_only_one_seed_says_of_its_pictures_is_not_taken_for_all() -> None:
    found, silent = made_up(), made_up(each=False)
    rows = [one if one.row.seed == 0 else other for one, other in zip(found.rows, silent.rows, strict=True)]
    assert line_of(replace(found, rows=rows)) == line_of(silent)


def test_what_is_not_reached_says_so() -> None:
    table = table_of(made_up())
    (row,) = [row for row in table.rows if row[table.named - 1].text == "unlearn"]
    line = dict(zip(table.heads, map(str, row), strict=True))
    assert line["slow: half back"] == "> 4 [> 4, > 4]"
    assert line["half back first"] == "not reached"
    values = dict(zip(table.heads, (entry.value for entry in row), strict=True))
    assert 4 < values["slow: half back"] == values["half back first"] < 4.001  # What tables are sorted by.


def test_seeds_of_which_a_checkpoint_is_missing_make_no_curve() -> None:
    found = made_up()
    rows = [one for one in found.rows if (one.row.seed, one.row.attack, one.row.step) != (1, "slow", 3)]
    line = line_of(replace(found, rows=rows))
    assert line["slow: half back"] == ""
    assert line["fast: half back"] != ""


@pytest.mark.parametrize("part", ["original", "attacks"])
def test_without_an_original_or_an_attack_there_is_no_table(part: str) -> None:
    found = made_up()
    gone = (lambda row: row.model == "original") if part == "original" else (lambda row: row.attack != "before")
    rows = [one for one in found.rows if not gone(one.row)]
    assert relearning_tables(replace(found, rows=rows), found.grid.concepts[0]) == []
