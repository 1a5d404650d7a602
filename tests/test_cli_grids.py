"""What ``bench --dry-run`` prints of an outlook that is made up."""

from __future__ import annotations

from typing import Any

import pytest

from metaunlearn.bench.estimate import KindEstimate, Outlook
from metaunlearn.cli.grids import LISTED, _duration, _memory, _outlook_lines

CELL = {"kind": "erase", "concept": "knife", "variant": "", "seed": 0}


def estimate(kind: str, **facts: Any) -> KindEstimate:
    return KindEstimate(**{"kind": kind, "cached": 0, "unknown": 0, "counted": False, "memory_bytes": None, **facts})


def test_an_outlook_is_told_line_by_line() -> None:
    """25 cells to make, of which the first 20 are named. Together: 90 s + 3 h are 3.0 h, and one is not known."""
    kinds = [
        estimate("pictures", cells=2, cached=2, seconds=0.0),
        estimate("data", cells=4, cached=1, seconds=90.0, memory_bytes=0),
        estimate("erase", cells=30, cached=7, seconds=10_800.0, unknown=1, counted=True, memory_bytes=3 * 2**29),
        estimate("attack", cells=1, seconds=None, unknown=1),
    ]
    todo = [{"cell": f"erase-{number}", **CELL, "seconds": 1.0, "memory_bytes": 5} for number in range(25)]
    found = Outlook(
        kinds=kinds, todo=todo, there=[{"cell": "data-0", **CELL}], memory_bytes=3 * 2**29, missing=["a judge: get one"]
    )
    table, *lines = _outlook_lines(found)
    rows = [line.split("  ") for line in table.splitlines()]
    assert [[word.strip() for word in row if word] for row in rows[0:1] + rows[2:]] == [
        ["cells", "in all", "there or not needed", "to make", "time for one process", "memory, by count"],
        ["pictures", "2", "2", "0", "0 s"],
        ["data", "4", "1", "3", "90 s", "–"],
        ["erase", "30", "7", "23", "3.0 h*, 1 not known", "1.5 GiB"],
        ["attack", "1", "0", "1", "not known", "not known"],
    ]
    assert lines == [
        "together: 3.0 h*, 2 not known, memory at most 1.5 GiB at a time",
        "* by the doctor's count, right to an order of magnitude: none of its kind has run here yet",
        "",
        "missing before it can begin:",
        "  a judge: get one",
        "",
        "to make, the first of them:",
        *(f"  erase-{number} erase knife 0" for number in range(LISTED)),
        "  and 5 more (--json lists them)",
        "",
        "there:",
        "  data-0 erase knife 0",
    ]


def test_an_outlook_says_nothing_of_what_is_not_so() -> None:
    """No count of the doctor's, nothing missing, nothing that holds a model, no more cells than are named."""
    todo = [{"cell": "data-0", "kind": "data", "seconds": 1.0, "memory_bytes": 0}] * LISTED
    found = Outlook(
        kinds=[estimate("data", cells=LISTED, seconds=20.0, memory_bytes=0)], todo=todo, there=[], memory_bytes=None,
        missing=[],
    )  # fmt: skip
    _, *lines = _outlook_lines(found)
    assert lines == ["together: 20 s", "", "to make, the first of them:", *["  data-0 data"] * LISTED]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (360_000, "100.0 h")],
)
def test_durations_have_the_unit_that_fits(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


@pytest.mark.parametrize(
    ("found", "left", "words"),
    [
        (None, 0, ""),
        (None, 1, "not known"),
        (0, 1, "–"),
        (2**29, 1, "512 MiB"),
        (2**30 - 1, 1, "1024 MiB"),
        (2**30, 1, "1.0 GiB"),
    ],
)
def test_memory_has_the_unit_that_fits(found: int | None, left: int, words: str) -> None:
    assert _memory(found, left=left) == words
