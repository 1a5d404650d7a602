"""``tune``: trials until there are enough, the frontier after each of them."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metaunlearn.bench.cells import Cell
from metaunlearn.bench.needs import Needs
from metaunlearn.bench.plan import Plan
from metaunlearn.bench.store import Store
from metaunlearn.devices import check_device
from metaunlearn.errors import MetaunlearnError, RunError, UserError
from metaunlearn.files import path_of, read_json, write_json
from metaunlearn.records import FRONTIER_FILE, TRIALS_FOLDER, TUNE_FILE
from metaunlearn.runs import Progress, versions
from metaunlearn.settings import whole_number
from metaunlearn.tuning.figure import figure
from metaunlearn.tuning.recipe import Tune, TuneRecipe, read_tune
from metaunlearn.tuning.records import BASELINES, Record, frontier, read_records
from metaunlearn.tuning.space import check_space, configured, default_of
from metaunlearn.tuning.study import Claim, Search, optuna_module
from metaunlearn.tuning.tables import frontier_page
from metaunlearn.tuning.trial import plan_of, run_trial

FIGURE_FILE = "frontier.svg"
LOOK = 1.0
"""Seconds between two looks at what the workers have finished."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What :func:`tune` returns."""

    out: Path
    records: list[Record]
    """Every finished trial, by number."""
    frontier: list[Record]
    """Those that no other beats, by what they lost."""

    def to_dict(self) -> dict[str, Any]:
        """What the command line prints with ``--json``."""
        return {
            "out": str(self.out), "trials": len(self.records),
            "failed": [record.trial for record in self.records if record.status == "failed"],
            "frontier": [asdict(record) for record in self.frontier],
            "page": str(self.out / FRONTIER_FILE), "figure": str(self.out / FIGURE_FILE),
        }  # fmt: skip


def tune(
    recipe: Path | str,
    out: Path | str,
    *,
    trials: int | None = None,
    workers: int = 1,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TuneResult:
    """Search the settings that ``recipe`` (a shipped name, or a path) varies, and keep every trial in ``out``.

    Trial 0 is the plainly unlearned model, trial 1 the recipe's own settings; ``trials``, by default the recipe's
    number, counts those beside them. ``workers`` processes of this machine share the work, and so do several calls on
    one ``out``. With ``resume`` a search that is there goes on, also to a larger number of trials.
    Raises UserError before any work when the call is wrong. A trial whose training breaks down is kept as failed.
    """
    device = check_device(device)
    workers = whole_number(workers, "workers=, --workers")
    if workers < 1:
        raise UserError(f"a search needs at least 1 worker (workers=, --workers); got {workers}.")
    out, read = path_of(out), read_checked(str(recipe))
    limit = read.tune.trials if trials is None else trials
    if limit < 0:
        raise UserError(f"the number of trials (trials=, --trials) cannot be negative; got {limit}.")
    optuna_module()
    claim_folder(out, read, resume=resume)
    if workers == 1:
        _work(read, out, limit, device, progress)
    else:
        _work_together(read, out, limit, device, workers, progress)
    return write_frontier(read, out)


def read_checked(recipe: str) -> TuneRecipe:
    """The recipe, with every setting and attack tried for being possible; UserError when one is not."""
    read = read_tune(recipe)
    try:
        check_space(read.tune)
        plan_of(read.tune, default_of(read.tune), (*read.tune.attacks, *read.tune.unseen), read.tune.seeds)
    except UserError as error:
        raise UserError(f"recipe {recipe}, [tune]: {error}") from error
    return read


def claim_folder(out: Path, read: TuneRecipe, *, resume: bool) -> None:
    """A new or empty folder, or one with a search of the same recipe if ``resume``; UserError otherwise."""
    if out.exists() and not out.is_dir():
        raise UserError(f"the output {out} is a file; give a folder (out=..., --out DIR).")
    asked = searched(read.tune)
    if (out / TUNE_FILE).is_file():
        earlier = read_json(out / TUNE_FILE)["tune"]
        if not resume:
            raise UserError(
                f"the output folder {out} holds a search already; go on with it (resume=True, --resume) or choose "
                "another (out=..., --out DIR)."
            )
        changed = sorted(key for key in asked if earlier.get(key) != asked[key])
        if changed:
            raise UserError(
                f"the search in {out} was asked for differently ({', '.join(changed)}); go on with the same recipe, or "
                "choose another folder (out=..., --out DIR). Unseen attacks and the number of trials may change."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"the output folder {out} is not empty and holds no search; choose another (out=..., --out DIR)."
        )
    else:
        write_json(out / TUNE_FILE, {"recipe": read.name, "tune": asked, "versions": versions()})


def searched(tune: Tune) -> dict[str, Any]:
    """What has to stay as it is for trials to be comparable."""
    return tune.model_dump(mode="json", exclude={"trials", "unseen", "report_seeds"})


def write_frontier(read: TuneRecipe, out: Path) -> TuneResult:
    """``frontier.md`` and ``frontier.svg`` of all trials that are there."""
    records = read_records(out)
    Store(out).write({FRONTIER_FILE: frontier_page(read, records, FIGURE_FILE), FIGURE_FILE: figure(records)})
    return TuneResult(out=out, records=records, frontier=frontier(records))


def _work(read: TuneRecipe, out: Path, limit: int, device: str, progress: Progress | None) -> None:
    """Trials one after another, until all are taken."""
    search, store = Search(read.tune, out), Store(out)
    while True:
        with search.next(limit) as claim:
            if claim is None:
                return
            record = _run(read.tune, claim, store, device, progress)
            record.write(out)
            search.tell(claim, record)
        logger.info("trial %d (%s): %s", record.trial, record.role, _in_words(record))
        write_frontier(read, out)
        if progress is not None:
            progress("trials", _finished(out), limit + len(BASELINES))


def _run(tune: Tune, claim: Claim, store: Store, device: str, progress: Progress | None) -> Record:
    began = time.monotonic()
    proposal = claim.proposal
    facts: dict[str, Any] = {
        "trial": claim.trial, "role": claim.role, "method": proposal.method, "meta": proposal.meta,
        "varied": proposal.settings, "settings": {},
    }  # fmt: skip
    try:
        chosen = configured(tune, proposal)
        facts["settings"] = {**chosen.settings.model_dump(mode="json"), **chosen.method_settings}
        outcome = run_trial(
            tune, proposal, store, attacks=tune.attacks, seeds=tune.seeds, give_up=claim.role not in BASELINES,
            device=device, progress=progress,
        )  # fmt: skip
    except MetaunlearnError as error:
        return Record(**facts, status="failed", message=str(error), seconds=round(time.monotonic() - began, 1))
    return Record(
        **facts,
        status="complete" if outcome.attacks else "given up",
        regained=outcome.worst,
        lost=outcome.lost.total(tune.weights),
        outcome=outcome.to_dict(),
        seconds=round(time.monotonic() - began, 1),
    )


def _in_words(record: Record) -> str:
    if record.status == "failed":
        return f"failed: {record.message}"
    regained = "not attacked" if record.regained is None else f"{record.regained:.1f} % regained"
    return f"{regained}, {record.lost or 0:.1f} points lost, {record.seconds:.0f} s"


def _finished(out: Path) -> int:
    return len(list((out / TRIALS_FOLDER).glob("trial-*.json")))


def _work_together(
    read: TuneRecipe, out: Path, limit: int, device: str, workers: int, progress: Progress | None
) -> None:
    """``workers`` processes, each with its share of the processors; they end with this one."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    processes = [
        context.Process(target=_worker, args=(read, out, limit, device, threads), daemon=True) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        told = -1
        while any(process.is_alive() for process in processes):
            processes[0].join(LOOK) if processes[0].is_alive() else time.sleep(LOOK)
            if progress is not None and (done := _finished(out)) != told:
                progress("trials", done, limit + len(BASELINES))
                told = done
    finally:
        for process in processes:
            process.terminate()
            process.join()
    broken = [process.exitcode for process in processes if process.exitcode]
    if broken:
        raise RunError(
            f"{len(broken)} of {workers} workers ended with an error, told above; what is finished was kept. "
            "Go on with resume=True (--resume)."
        )


def _worker(read: TuneRecipe, out: Path, limit: int, device: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    with contextlib.suppress(KeyboardInterrupt):  # The terminal told the parent, too, and that says so.
        _work(read, out, limit, device, None)


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What one more trial would take: ``--dry-run``."""

    outer_steps: int
    """Of erasing, over all seeds."""
    attack_steps: int
    """Of all attacks of the selection set."""
    pictures: int
    """That are drawn and judged."""
    seconds_erasing: float | None
    """The doctor's count for the device, right in its order of magnitude; None: there is no such device here."""
    seconds: float | None
    """Mean of the trials that are there already, baselines aside; None: there are none yet."""
    once: int
    """Cells that all trials share and that are still to be made: pictures, the attacker's data, the original."""
    trials: int
    """Still to be run, with the baselines."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def dry_run(recipe: str, out: Path, *, trials: int | None = None, device: str = "cpu") -> TrialCost:
    """What a trial at the recipe's own settings costs on ``device``; nothing is run or written."""
    out, read = path_of(out), read_checked(recipe)
    tune = read.tune
    proposal = default_of(tune)
    plan = plan_of(tune, proposal, tune.attacks, tune.seeds, device=device)
    cells = plan.with_needs(row.cell for row in plan.rows)
    shared = _behind_originals(plan)
    store = Store(out)
    records = read_records(out)
    ours = [record.seconds for record in records if record.role not in BASELINES]
    limit = tune.trials if trials is None else trials
    return TrialCost(
        outer_steps=_size(cells, "erase"),
        attack_steps=_size(cells, "attack"),
        pictures=_size([cell for cell in cells if cell not in shared], "measure"),
        seconds_erasing=_seconds_erasing(plan, device),
        seconds=sum(ours) / len(ours) if ours else None,
        once=sum(not store.complete(cell.name) for cell in shared),
        trials=max(0, limit + len(BASELINES) - len(records)),
    )


def _behind_originals(plan: Plan) -> list[Cell]:
    originals = plan.with_needs(row.cell for row in plan.rows if row.model == "original")
    return [*originals, *(cell for cell in plan.cells.values() if cell.kind in ("pictures", "data"))]


def _seconds_erasing(plan: Plan, device: str) -> float | None:
    needs = Needs(plan, device)
    found = [needs.of(cell) for cell in plan.cells.values() if cell.kind == "erase"]
    known = [need.seconds for need in found if need is not None and need.seconds is not None]
    return sum(known) if len(known) == len(found) else None


def _size(cells: Sequence[Cell], kind: str) -> int:
    return int(sum(cell.size for cell in cells if cell.kind == kind))
