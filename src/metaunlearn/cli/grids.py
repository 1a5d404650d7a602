"""The command ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.cli.tables import table

if TYPE_CHECKING:
    from metaunlearn.bench.estimate import Outlook

LISTED = 20
"""Cells of each sort that --dry-run names; --json has all."""


def bench(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped grid (metaunlearn recipes list) or a file.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where it goes; a bench that is there goes on.")],
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="KEY=VALUE",
            help="A part: concept, seed, method, variant, model, attack, step or cell; repeatable.",
        ),
    ] = None,
    overrides: o.Overrides = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", metavar="NAME=FILE", help="A file of prompts that RECIPE asks for; repeatable."),
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            "--use",
            metavar="NAME=PATH",
            help="Pictures that RECIPE asks for, or base=, judge=: a model in place of its own; repeatable.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--dry-run", help="Say what is there, what is missing and what it takes.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, HOST:PORT, or local."),
    ] = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:
    """Run a grid: a table of the paper, or your own.

    What is in DIR already is not made again; several processes on one DIR share the work.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.bench.run import dry_run, run_grid

        asked = {"only": only or (), "overrides": overrides or (), "prompts": prompts or (), "use": use or ()}
        if plan:
            found = dry_run(recipe, out, **asked, device=device, ray=ray)
        else:
            summary = run_grid(recipe, out, **asked, device=device, ray=ray, progress=console.progress)
    if plan:
        console.result(found.to_dict(), *_outlook_lines(found))
    else:
        made = f"{summary['rows']} states measured, {summary['made']} cells made now"
        paths = [f"{name}: {summary[name]}" for name in ("tables", "results", "report") if summary[name] is not None]
        console.result(summary, made, *paths)


def _outlook_lines(found: Outlook) -> list[str]:
    rows = [
        (
            part.kind, str(part.cells), str(part.cached), str(part.cells - part.cached),
            _time(part.seconds, part.unknown, counted=part.counted),
            _memory(part.memory_bytes, left=part.cells - part.cached),
        )
        for part in found.kinds
    ]  # fmt: skip
    known = sum(part.seconds or 0.0 for part in found.kinds)
    unknown, counted = sum(part.unknown for part in found.kinds), any(part.counted for part in found.kinds)
    nothing = f"time not known ({unknown} cells)" if unknown and not known else ""
    memory = f", memory at most {_memory(found.memory_bytes)} at a time" if found.memory_bytes else ""
    heads = ("cells", "in all", "there or not needed", "to make", "time for one process", "memory, by count")
    return [
        table(heads, rows),
        f"together: {nothing or _time(known, unknown, counted=counted)}{memory}",
        *(["* by the doctor's count, right to an order of magnitude: none of its kind has run here yet"] * counted),
        *(["", "missing before it can begin:"] if found.missing else []),
        *(f"  {text}" for text in found.missing),
        *_cells("to make, the first of them:", found.todo),
        *_cells("there:", found.there),
    ]


def _cells(title: str, cells: list[dict[str, Any]]) -> list[str]:
    if not cells:
        return []
    labels = ({k: v for k, v in cell.items() if k not in ("seconds", "memory_bytes")} for cell in cells[:LISTED])
    lines = ["  " + " ".join(str(value) for value in cell.values() if value != "") for cell in labels]
    more = len(cells) - len(lines)
    return ["", title, *lines, *([f"  and {more} more (--json lists them)"] if more else [])]


def _memory(found: int | None, *, left: int = 0) -> str:
    if not found:
        return "–" if found == 0 else "not known" if left else ""
    return f"{found / 2**30:.1f} GiB" if found >= 2**30 else f"{found / 2**20:.0f} MiB"


def _time(seconds: float | None, unknown: int, *, counted: bool) -> str:
    if not seconds and unknown:  # What is known is nothing worth a figure, copies of pictures say.
        return "not known"
    more = f", {unknown} not known" if unknown else ""
    return f"{_duration(seconds or 0.0)}{'*' * counted}{more}"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
