"""Run folders below a folder: ``run.json``, ``log.jsonl`` and ``results.json`` as cards, loss curves, score tables.

Folders of a bench, of a search and of a demo have pages of their own: they are named, and nothing below them is read.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from metaunlearn.files import read_json, read_records
from metaunlearn.metrics.intervals import comparable
from metaunlearn.records import FRONTIER_FILE, RUN_FILE, TRIALS_FOLDER, TUNE_FILE, record_of
from metaunlearn.report.data import SUMMARY_FILE, Score, parse, read_summary
from metaunlearn.runs import LOG_FILE, RESULTS_FILE

STRIP_FOLDER = "strip"
"""Where ``attack --strip`` leaves a picture for each of its steps, the number as its name."""
REPORT_FILE = "report.html"
CURVE_POINTS = 240
"""A loss curve longer than this is averaged over equal stretches of steps."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


class _Result(BaseModel):
    """One metric of ``results.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: Finite
    low: Finite | None = None
    high: Finite | None = None
    n: int | None = Field(default=None, ge=0)
    protocol: dict[str, Any] = {}


class _Grid(BaseModel):
    """What a link needs of a grid's ``results.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: list[Any]
    rows_in_all: int


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """One run folder: what ``run.json`` says, and its losses by step."""

    name: str
    """Path below the reported folder."""
    record: dict[str, Any]
    """``run.json``; empty when only a log lies there."""
    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Field name → (step, loss) in the order of the log."""
    strip: list[tuple[int, Path]] = field(default_factory=list)
    """(step, picture after it) of ``attack --strip``, ascending."""

    @property
    def strip_prompt(self) -> str:
        """What the pictures of ``strip`` were asked for."""
        request = self.record.get("request")
        return str((isinstance(request, dict) and request.get("strip")) or "one prompt")


@dataclass(frozen=True, kw_only=True)
class GridLink:
    """A bench's grid below the reported folder."""

    name: str
    """Path of its folder below the reported one."""
    measured: int
    in_all: int
    """States."""
    page: str
    """Its page, relative to the reported folder, as an address; empty where it is not written yet."""


@dataclass(frozen=True, kw_only=True)
class StoryLink:
    """A demo below the reported folder."""

    name: str
    """Path of its folder below the reported one."""
    concept: str
    page: str
    """As a grid's."""


@dataclass(frozen=True, kw_only=True)
class SearchLink:
    """A search of ``metaunlearn tune`` below the reported folder."""

    name: str
    """Path of its folder below the reported one."""
    trials: int
    page: str
    """``frontier.md`` below the reported folder, quoted for a link; empty where no trial is done."""


@dataclass(frozen=True, kw_only=True)
class MetricScore:
    """One line of a :class:`ScoreTable`."""

    name: str
    score: Score
    n: int | None


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores that may be compared: one metric under one protocol."""

    metric: str
    protocol: dict[str, Any]
    lines: list[MetricScore]
    apart: dict[str, Any] = field(default_factory=dict)
    """The part of the protocol in which tables of the same metric differ."""

    @property
    def percent(self) -> bool:
        """Whether its figures are percentages."""
        return str(self.protocol.get("unit")).startswith("percent of ")


def is_grid(results: object) -> bool:
    """Whether a ``results.json`` is that of a bench."""
    return isinstance(results, dict) and "bench" in results


def is_bench(folder: Path) -> bool:
    """Whether ``folder`` is one that a bench writes to, whatever it got to."""
    return ((folder / "cells").is_dir() and (folder / "locks").is_dir()) or has_grid(folder)


def has_grid(folder: Path) -> bool:
    """Whether the ``results.json`` of a bench's grid lies in ``folder``."""
    path = folder / RESULTS_FILE
    return path.is_file() and is_grid(read_json(path))


def grids_in(folder: Path) -> list[Path]:
    """The folders with the results of a bench's grids: in one that several recipes were run into, one each."""
    if not is_bench(folder):
        return []
    return [found for found in (folder, *sorted(folder.iterdir())) if has_grid(found)]


def _folders(top: Path) -> list[Path]:
    """``top`` and every folder below it, in a stable order.

    Left out are hidden ones, links, and what is below a bench or a demo.
    """
    found = []
    for folder, below, _files in os.walk(top):
        here = Path(folder)
        of_bench, of_story = here != top and is_bench(here), here != top and is_story(here)
        below[:] = [] if of_bench or of_story else sorted(name for name in below if not name.startswith("."))
        found.append(here)
    return found


def is_story(folder: Path) -> bool:
    """Whether a demo was told in ``folder``, to its end."""
    if not (folder / SUMMARY_FILE).is_file():
        return False
    record = record_of(folder)
    return record is not None and record["request"].get("command") == "demo"


def _name(folder: Path, top: Path) -> str:
    return top.resolve().name if folder == top else folder.relative_to(top).as_posix()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl``. A last line without its newline was cut off by a kill and is left out."""
    return [record for _, record in read_records(path, growing=True)]


def losses(records: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Every field named ``loss`` or ``loss_…`` / ``…_loss`` by step; values that are no finite number are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for index, record in enumerate(records):
        step = record.get("step", index)
        for name, value in record.items():
            if "loss" in name.lower().split("_") and _is_number(value) and _is_number(step):
                curves.setdefault(name, []).append((float(step), float(value)))
    return {name: points for name, points in curves.items() if len(points) > 1}


def thinned(points: list[tuple[float, float]], limit: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """``points`` averaged over at most ``limit`` equal stretches."""
    if len(points) <= limit:
        return points
    bounds = [len(points) * index // limit for index in range(limit + 1)]
    stretches = [points[begin:end] for begin, end in pairwise(bounds)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_runs(top: Path) -> list[RunCard]:
    """A card for every folder below ``top`` that holds ``run.json`` or ``log.jsonl``."""
    cards = []
    for folder in _folders(top):
        run, log = folder / RUN_FILE, folder / LOG_FILE
        if folder != top and is_story(folder):
            continue  # Has a page of its own.
        if _is_checkpoint(folder):
            continue  # Of the run above it, whose log it repeats.
        if not run.is_file() and not log.is_file():
            continue
        record = parse(dict[str, Any], read_json(run), str(run)) if run.is_file() else {}
        curves = losses(read_log(log)) if log.is_file() else {}
        cards.append(RunCard(name=_name(folder, top), record=record, losses=curves, strip=_strip(folder)))
    return cards


def _is_checkpoint(folder: Path) -> bool:
    own, above = record_of(folder), record_of(folder.parent)
    return own is not None and above is not None and "step" in own and own["request"] == above["request"]


def _strip(run: Path) -> list[tuple[int, Path]]:
    files = (run / STRIP_FOLDER).glob("*.png")
    return sorted((int(file.stem), file) for file in files if file.stem.isdigit())


def read_grids(top: Path) -> list[GridLink]:
    """A link for every grid of the benches below ``top``."""
    links = []
    for folder in (grid for bench in _folders(top) for grid in grids_in(bench)):
        found = parse(_Grid, read_json(folder / RESULTS_FILE), str(folder / RESULTS_FILE))
        links.append(
            GridLink(
                name=_name(folder, top), measured=len(found.rows), in_all=found.rows_in_all, page=_page_of(folder, top)
            )
        )
    return links


def read_stories(top: Path) -> list[StoryLink]:
    """A link for every demo below ``top``."""
    found = [(folder, read_summary(folder)) for folder in _folders(top) if folder != top and is_story(folder)]
    return [
        StoryLink(name=_name(folder, top), concept=summary.concept, page=_page_of(folder, top))
        for folder, summary in found
        if summary is not None
    ]


def read_searches(top: Path) -> list[SearchLink]:
    """A link for every search below ``top``."""
    return [
        SearchLink(
            name=_name(folder, top),
            trials=sum(1 for _ in (folder / TRIALS_FOLDER).glob("*.json")),
            page=_page_of(folder, top, FRONTIER_FILE),
        )
        for folder in _folders(top)
        if (folder / TUNE_FILE).is_file()
    ]


def _page_of(folder: Path, top: Path, name: str = REPORT_FILE) -> str:
    page = folder / name
    return quote(page.relative_to(top).as_posix()) if page.is_file() else ""


def read_scores(top: Path) -> list[ScoreTable]:
    """One table per metric *and* protocol from every ``results.json`` below ``top``; protocols are never mixed.

    Repetitions with other seeds stand in one table, as :func:`~metaunlearn.metrics.intervals.comparable` has it.
    """
    tables: dict[tuple[str, str], ScoreTable] = {}
    for folder in _folders(top):
        path = folder / RESULTS_FILE
        if not path.is_file():
            continue
        found = read_json(path)
        if is_grid(found):
            continue  # Has a page of its own.
        results: dict[str, _Result] = parse(dict[str, _Result], found, str(path))
        for metric, result in results.items():
            key = (metric, json.dumps(comparable(result.protocol), sort_keys=True))
            table = tables.setdefault(key, ScoreTable(metric=metric, protocol=result.protocol, lines=[]))
            score = Score(result.value, result.low, result.high)
            table.lines.append(MetricScore(name=_name(folder, top), score=score, n=result.n))
    ordered = [tables[key] for key in sorted(tables)]
    return [replace(table, apart=_apart(table, ordered)) for table in ordered]


def _apart(table: ScoreTable, tables: list[ScoreTable]) -> dict[str, Any]:
    others = [comparable(other.protocol) for other in tables if other.metric == table.metric]
    keys = dict.fromkeys(["concept", *(key for protocol in others for key in protocol)])
    return {
        key: table.protocol.get(key)
        for key in keys
        if any(protocol.get(key) != table.protocol.get(key) for protocol in others)
    }
