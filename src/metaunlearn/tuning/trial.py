"""One trial: an erased model, attacked and measured as cells of a bench; and what it scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.cells import Cell
from metaunlearn.bench.plan import Plan, Row, make_plan
from metaunlearn.bench.recipe import Grid, GridConcept, GridMeasure, check_grid
from metaunlearn.bench.state import BEFORE
from metaunlearn.bench.store import Store
from metaunlearn.bench.work import make
from metaunlearn.erasure.registry import has_defence
from metaunlearn.errors import RunError
from metaunlearn.files import read_json
from metaunlearn.metrics.intervals import wilson
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.runs import Progress
from metaunlearn.tuning.recipe import Tune, Weights
from metaunlearn.tuning.space import Proposal

PAUSE = 1.0
"""Seconds between two looks at a cell that another process makes."""
Scores = Mapping[str, Mapping[str, Any]]
"""By name, what ``scores.json`` of a measured state holds."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What a model has lost beside the original before any attack, means over the seeds; a gain is negative."""

    unrelated: float | None
    """Points of unrelated concepts; None: not measured."""
    related: float | None
    """Points of related concepts."""
    fid: float | None
    """Percent of the original's FID that were added; None also where the pictures are too few for an FID."""

    def total(self, weights: Weights) -> float:
        """Sum of weight x max(loss, 0), in points of unrelated concepts: a gain makes up for no loss elsewhere."""
        parts = ((weights.unrelated, self.unrelated), (weights.related, self.related), (weights.fid, self.fid))
        return sum(weight * max(loss or 0.0, 0.0) for weight, loss in parts)


@dataclass(frozen=True, kw_only=True)
class Regained:
    """How often a model shows the concept under one attack, in percent."""

    mean: float
    """Over checkpoints and seeds."""
    low: float
    high: float
    """Wilson's 95 % interval of all these pictures together."""
    checkpoints: dict[str, float]
    """By step, over the seeds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial's model scores."""

    before: float
    """Percent of pictures that show the concept before any attack."""
    lost: Lost
    attacks: dict[str, Regained]
    """By attack, in the order of the recipe; empty: it was given up for what it had lost."""

    @property
    def worst(self) -> float | None:
        """Under the attack that brings back most, in percent."""
        return max((found.mean for found in self.attacks.values()), default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def grid_of(tune: Tune, proposal: Proposal, attacks: Sequence[GridAttack], seeds: Sequence[int]) -> Grid:
    """The trial as a bench: the original and one erased model; UserError when its attacks cannot be."""
    after = tune.measure.after
    grid = Grid(
        base=tune.base,
        recipe=tune.recipe,
        methods=(proposal.method,),
        models=("original", "meta-unlearn" if proposal.meta and not has_defence(proposal.method) else "unlearn"),
        concepts=(
            GridConcept(
                name=tune.concept, seeds=tuple(seeds), steps=tune.steps, attack=tune.attack, set=proposal.settings
            ),
        ),
        attacks=tuple(attacks),
        measure=GridMeasure(before=tune.measure.before, between=after, last=after, shown=0),
    )
    check_grid(grid)
    return grid


def plan_of(
    tune: Tune, proposal: Proposal, attacks: Sequence[GridAttack], seeds: Sequence[int], *, device: str = "cpu"
) -> Plan:
    """The cells of a trial."""
    return make_plan(grid_of(tune, proposal, attacks, seeds), device=device)


def run_trial(
    tune: Tune,
    proposal: Proposal,
    store: Store,
    *,
    attacks: Sequence[GridAttack],
    seeds: Sequence[int],
    give_up: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Outcome:
    """Make what is missing of a trial and read what it scores; RunError when its training breaks down.

    With ``give_up`` it is not attacked when it has lost more than the recipe allows. The attacked models are dropped
    as soon as they are measured.
    """
    plan = plan_of(tune, proposal, attacks, seeds, device=device)
    rows = [row for row in plan.rows if row.attack == BEFORE]
    _make(store, plan, rows, device, progress)
    lost = _lost(store, rows)
    if give_up and tune.give_up is not None and lost.total(tune.weights) > tune.give_up:
        return Outcome(before=_before(store, rows), lost=lost, attacks={})
    found = {}
    for attack in attacks:
        attacked = [row for row in plan.rows if row.attack == attack.name]
        # Alone with these cells: another trial of the same settings would miss what is dropped here.
        with_lock = f"attacked-{attacked[-1].cell.name}"
        while True:
            with store.locks.held(with_lock) as mine:
                if mine:
                    _make(store, plan, attacked, device, progress)
                    _drop_attacks(store, plan, attacked)
                    break
            time.sleep(PAUSE)
        found[attack.name] = _regained(store, attacked)
    return Outcome(before=_before(store, rows), lost=lost, attacks=found)


def _make(store: Store, plan: Plan, rows: Sequence[Row], device: str, progress: Progress | None) -> None:
    while todo := plan.with_needs((row.cell for row in rows), skip=store.complete):
        _make_one(store, todo[0], device, progress)


def _make_one(store: Store, cell: Cell, device: str, progress: Progress | None) -> None:
    store.cells.mkdir(parents=True, exist_ok=True)
    while (outcome := make(store, cell, device=device, progress=progress)).state == "busy":
        time.sleep(PAUSE)
    if outcome.state == "failed":
        raise RunError(f"{cell.kind}: {outcome.message}")


def _drop_attacks(store: Store, plan: Plan, rows: Sequence[Row]) -> None:
    for cell in plan.with_needs(row.cell for row in rows):
        if cell.kind == "attack" and store.complete(cell.name):
            store.remove(cell.name)


def _scores(store: Store, row: Row) -> Scores:
    found: Scores = read_json(store.folder(row.cell.name) / SCORES_FILE)["scores"]
    return found


def _before(store: Store, rows: Sequence[Row]) -> float:
    return mean(_scores(store, row)["concept"]["value"] for row in rows if row.model != "original")


def _lost(store: Store, rows: Sequence[Row]) -> Lost:
    originals = {row.seed: _scores(store, row) for row in rows if row.model == "original"}
    pairs = [(originals[row.seed], _scores(store, row)) for row in rows if row.model != "original"]

    def points(name: str) -> float | None:
        both = [(a[name]["value"], b[name]["value"]) for a, b in pairs if name in a and name in b]
        return mean(a - b for a, b in both) if both else None

    both = [(a["fid"]["value"], b["fid"]["value"]) for a, b in pairs if "fid" in a and "fid" in b]
    fid = mean(100 * (b / a - 1) for a, b in both) if both else None
    return Lost(unrelated=points("unrelated"), related=points("related"), fid=fid)


def _regained(store: Store, rows: Sequence[Row]) -> Regained:
    scores = [(row.step, _scores(store, row)["concept"]) for row in rows]
    n = sum(score["n"] for _, score in scores)
    hits = sum(round(score["value"] * score["n"] / 100) for _, score in scores)
    interval = wilson(hits, n)
    by_step = {
        str(step): mean(score["value"] for at, score in scores if at == step) for step in sorted({s for s, _ in scores})
    }
    return Regained(mean=mean(by_step.values()), low=interval.low, high=interval.high, checkpoints=by_step)
