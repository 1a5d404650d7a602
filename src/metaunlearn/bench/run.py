"""``bench``: a grid, made as far as it is not there yet, and its tables."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metaunlearn.bench.cells import SCORES, Cell
from metaunlearn.bench.cluster import Cluster, check_kind
from metaunlearn.bench.dropping import Dropping
from metaunlearn.bench.estimate import Outlook, outlook
from metaunlearn.bench.executor import Executor, Local
from metaunlearn.bench.folders import check_folder
from metaunlearn.bench.inputs import Inputs
from metaunlearn.bench.long_csv import as_csv
from metaunlearn.bench.plan import Plan, make_plan, missing_of
from metaunlearn.bench.recipe import BenchRecipe, read_bench
from metaunlearn.bench.results import Asked, Results
from metaunlearn.bench.select import Part, select
from metaunlearn.bench.store import Store
from metaunlearn.bench.tables import markdown
from metaunlearn.bench.work import Outcome
from metaunlearn.data.wording import listed
from metaunlearn.devices import check_device, check_name
from metaunlearn.errors import RunError, UserError
from metaunlearn.files import path_of
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.report.page import build_report
from metaunlearn.runs import RESULTS_FILE, Progress

TABLES_FILE = "tables.md"
CSV_FILE = "table.csv"
PAUSE = 1.0
"""Seconds to wait when other processes are making everything that could be made."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A grid, checked, with the folder it goes to and the part that was asked for."""

    recipe: BenchRecipe
    plan: Plan
    store: Store
    part: Part
    overrides: tuple[str, ...]
    asked: Asked

    @property
    def folder(self) -> Path:
        """Where its tables and its page go."""
        return self.store.grid_folder(self.recipe.name)

    def todo(self) -> list[Cell]:
        """What has to be made now, in order."""
        return self.plan.with_needs(self.part.cells, skip=self.store.complete)


def prepare(recipe: str, out: Path | str, asked: Asked, overrides: Overrides = ()) -> Job:
    """Read and check everything; UserError says what is wrong. Nothing is written."""
    read, said = read_bench(recipe), as_overrides(overrides)
    store = Store.claim(path_of(out))
    check_folder(store, recipe)
    plan = make_plan(read.grid, said, Inputs(read.grid, asked.prompts, asked.use), device=asked.device)
    return Job(read, plan, store, select(plan, asked.only), tuple(said), asked)


def dry_run(
    recipe: str,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    overrides: Overrides = (),
    prompts: Sequence[str] = (),
    use: Sequence[str] = (),
    device: str = "cpu",
    ray: str | None = None,
) -> Outlook:
    """What :func:`run_grid` would have to do, what it would take, and what is missing for it.

    ``device`` need not be here.
    """
    check_name(device)
    if ray is not None:
        check_kind(device)
    asked = Asked(only=tuple(listed(only)), prompts=tuple(listed(prompts)), use=tuple(listed(use)), device=device)
    job = prepare(recipe, out, asked, overrides)
    return outlook(job.plan, job.store, job.part.cells, device)


def run_grid(
    recipe: str,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    overrides: Overrides = (),
    prompts: Sequence[str] = (),
    use: Sequence[str] = (),
    device: str = "cpu",
    ray: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make what is missing of the grid ``recipe`` (a shipped name, or a path) in ``out``; write its tables and report.

    These go into a folder of ``out`` with the recipe's name; the cells are shared by all grids there.

    ``only`` (``["method=sdd", "seed=0"]``) takes a part of it; ``overrides`` (``{"steps": 100}``) go on top of every
    erasing's settings. ``prompts`` (``["i2p-nudity=FILE"]``) and ``use`` (``["hrm-m=DIR"]``, ``["base=MODEL"]``) give
    what the recipe asks for by name. Several processes may run on one ``out`` and share the work. This process makes
    one cell after another, or with ``ray``, the address of a Ray cluster, has that make them. Raises UserError before
    any work when the call is wrong or something is missing, RunError at the end when cells failed.
    """
    if ray is None:  # A cluster's machines may have what this one has not.
        check_device(device)
    asked = Asked(only=tuple(listed(only)), prompts=tuple(listed(prompts)), use=tuple(listed(use)), device=device)
    job = prepare(recipe, out, asked, overrides)
    if missing := missing_of(job.todo()):
        told = "\n".join(f"  {text}" for text in missing)
        raise UserError(f"{recipe} cannot begin; this is missing:\n{told}")
    loop = _Loop(job, _executor(job, ray, progress), progress)
    job.store.cells.mkdir(parents=True, exist_ok=True)
    loop.run()
    loop.write()
    report = build_report(job.folder) if loop.results.found().rows else None
    if loop.failed:
        told = "\n".join(f"  {name}: {message}" for name, message in loop.failed.items())
        raise RunError(
            f"{len(loop.failed)} cells failed; what is whole was kept, and is in {job.folder / TABLES_FILE}:\n{told}"
        )
    return {
        "out": str(out),
        "rows": len(job.part.rows),
        "made": loop.made,
        "tables": str(job.folder / TABLES_FILE),
        "results": str(job.folder / RESULTS_FILE),
        "csv": str(job.folder / CSV_FILE),
        "report": None if report is None else str(report),
    }


def _executor(job: Job, ray: str | None, progress: Progress | None) -> Executor:
    if ray is None:
        return Local(job.store, device=job.asked.device, progress=progress)
    return Cluster(job.store, job.plan, address=ray, device=job.asked.device)


@dataclass
class _Loop:
    """Submits what can be made until nothing is left, and writes the tables as rows come in."""

    job: Job
    executor: Executor
    progress: Progress | None
    failed: dict[str, str] = field(default_factory=dict)
    made: int = 0
    """Cells that this process made."""

    def __post_init__(self) -> None:
        job = self.job
        self.results = Results(job.recipe, job.plan, job.store, job.overrides, job.asked)
        self.dropping = Dropping(job.store, job.recipe.name, job.plan, keep=job.recipe.grid.keep_checkpoints)

    def run(self) -> None:
        """Until everything that was asked for is whole, or waits for a cell that failed."""
        store = self.job.store
        self.dropping.announce()
        submitted: set[str] = set()
        elsewhere: set[str] = set()
        while todo := self._todo():
            for cell in todo:
                if not self.executor.free():
                    break
                ready = all(store.complete(name) for name in cell.needs.values())
                if ready and cell.name not in submitted | elsewhere:
                    self.executor.submit(cell)
                    submitted.add(cell.name)
            outcomes = self.executor.finished()
            for outcome in outcomes:
                submitted.discard(outcome.cell.name)
                if outcome.state == "busy":
                    elsewhere.add(outcome.cell.name)
                else:
                    elsewhere.clear()
                    self._note(outcome)
            if not outcomes:
                time.sleep(PAUSE)
                elsewhere.clear()
        self._drop_what_is_left()

    def _drop_what_is_left(self) -> None:
        """By a process that ended before it could, or held for a grid that was given up since."""
        attacks = {cell.needs["attack"] for cell in self.job.plan.cells.values() if "attack" in cell.needs}
        for attack in sorted(filter(self.job.store.complete, attacks)):
            self.dropping.drop(attack)

    def write(self) -> None:
        """The tables of all that is whole, also of what other processes made."""
        found = self.results.found()
        self.job.store.write(
            {
                RESULTS_FILE: json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n",
                TABLES_FILE: markdown(found),
                CSV_FILE: as_csv(found),
            },
            self.job.folder,
        )

    def _todo(self) -> list[Cell]:
        """What is left, without what cannot be made because something failed."""
        left = self.job.todo()
        lost = set(self.failed)
        for cell in left:  # Each comes after those that it needs.
            if lost & set(cell.needs.values()):
                lost.add(cell.name)
        return [cell for cell in left if cell.name not in lost]

    def _note(self, outcome: Outcome) -> None:
        cell = outcome.cell
        named = " ".join(str(value) for value in cell.labels.values() if value != "")
        if outcome.state == "failed":
            self.failed[cell.name] = outcome.message
            logger.warning("%s (%s) failed: %s", cell.name, named, outcome.message)
            return
        if outcome.state == "gone":  # What it needs is made again first.
            return
        if outcome.state == "made":
            self.made += 1
            logger.info("%s: %s, %.0f s", cell.kind, named, outcome.seconds)
        if cell.kind in SCORES:
            self.write()
        if "attack" in cell.needs:
            self.dropping.drop(cell.needs["attack"])
        rows = self.job.part.rows
        if self.progress is not None and rows:
            self.progress("states measured", sum(self.job.store.complete(row.cell.name) for row in rows), len(rows))
