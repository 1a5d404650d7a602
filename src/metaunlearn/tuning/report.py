"""``tune --report``: chosen trials under the selection set and under attacks that the search never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metaunlearn.bench.store import Store
from metaunlearn.devices import check_device
from metaunlearn.errors import UserError
from metaunlearn.files import path_of
from metaunlearn.runs import Progress
from metaunlearn.tuning.records import BASELINES, Record, frontier, read_records
from metaunlearn.tuning.run import claim_folder, read_checked
from metaunlearn.tuning.tables import Reported, report_page
from metaunlearn.tuning.trial import run_trial

REPORT_FILE, REPORT_JSON = "report.md", "report.json"


def report(
    recipe: Path | str,
    out: Path | str,
    *,
    trials: Sequence[int] = (),
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the recipe's unseen attacks on ``trials`` of the search in ``out``, by default its frontier.

    The plain model and the default are always beside them. With the recipe's ``report_seeds`` all is erased and
    measured afresh for these. Leaves ``report.md`` and ``report.json``; returns the summary. Raises UserError when the
    call is wrong, RunError when a training breaks down.
    """
    out, read, device = path_of(out), read_checked(str(recipe)), check_device(device)
    tune = read.tune
    if not tune.unseen:
        raise UserError(f"recipe {recipe}, [tune]: unseen is empty; a report needs attacks that the search never saw.")
    if not (out / "trials").is_dir():
        raise UserError(f"there are no trials in {out} (out=..., --out DIR) to report on; search first.")
    claim_folder(out, read, resume=True)
    chosen = _chosen(read_records(out), trials, out)
    seeds, store = tune.report_seeds or tune.seeds, Store(out)
    reported = []
    for done, record in enumerate(chosen, start=1):
        seen, unseen = (
            run_trial(tune, record.proposal, store, attacks=attacks, seeds=seeds, device=device, progress=progress)
            for attacks in (tune.attacks, tune.unseen)
        )
        reported.append(Reported(record, seen, unseen))
        store.write(
            {
                REPORT_FILE: report_page(read, reported, seeds),
                REPORT_JSON: json.dumps([_as_json(one) for one in reported], indent=1, ensure_ascii=False) + "\n",
            }
        )
        if progress is not None:
            progress("reporting", done, len(chosen))
    return {
        "out": str(out), "seeds": list(seeds), "trials": [_as_json(one) for one in reported],
        "report": str(out / REPORT_FILE),
    }  # fmt: skip


def _chosen(records: Sequence[Record], trials: Sequence[int], out: Path) -> list[Record]:
    done = {record.trial: record for record in records if record.status != "failed"}
    missing = [number for number in trials if number not in done]
    if missing:
        raise UserError(f"{out} has no finished trial {missing[0]} (trials=[...], --trial N); it has {sorted(done)}.")
    wanted = [done[number] for number in trials] or frontier(records)
    baselines = [record for record in done.values() if record.role in BASELINES]
    return [*baselines, *(record for record in wanted if record not in baselines)]


def _as_json(one: Reported) -> dict[str, Any]:
    return {
        "trial": one.record.trial, "role": one.record.role, "varied": one.record.varied,
        "seen": {**asdict(one.seen), "worst": one.seen.worst},
        "unseen": {**asdict(one.unseen), "worst": one.unseen.worst},
    }  # fmt: skip
