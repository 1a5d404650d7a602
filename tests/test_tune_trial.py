"""One trial of a search: what its model scores, when it is given up, and which models stand in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench_grids import changed, score, write_scores
from metaunlearn.bench.store import Store
from metaunlearn.metrics.intervals import wilson
from metaunlearn.settings import resolve
from metaunlearn.tuning.recipe import Tune
from metaunlearn.tuning.space import Proposal, default_of
from metaunlearn.tuning.trial import Lost, Outcome, grid_of, run_trial
from tiny_searches import SEARCH

SCORES: Mapping[tuple[str, int, float], dict[str, float]] = {
    ("original", 0, 0): {"concept": 90, "related": 80, "unrelated": 70, "fid": 10},
    ("original", 1, 0): {"concept": 90, "related": 80, "unrelated": 70, "fid": 10},
    ("meta-unlearn", 0, 0): {"concept": 0, "related": 75, "unrelated": 72, "fid": 12},
    ("meta-unlearn", 1, 0): {"concept": 20, "related": 65, "unrelated": 60, "fid": 15},
    ("meta-unlearn", 0, 1): {"concept": 10},
    ("meta-unlearn", 1, 1): {"concept": 20},
    ("meta-unlearn", 0, 2): {"concept": 30},
    ("meta-unlearn", 1, 2): {"concept": 60},
}
"""By model, seed and step of the attack: percent of ten pictures, and the FID."""


def trial_of(monkeypatch: pytest.MonkeyPatch, out: Path, found: Tune, *, give_up: bool = False) -> Outcome:
    """The default's outcome where every state has its ``SCORES``."""

    def make(store: Store, plan: Any, rows: Any, device: str, progress: Any) -> None:
        for row in rows:
            known = SCORES[row.model, row.seed, row.step]
            write_scores(store, row, **{name: score(value) for name, value in known.items()})

    monkeypatch.setattr("metaunlearn.tuning.trial._make", make)
    return run_trial(found, default_of(found), Store(out), attacks=found.attacks, seeds=(0, 1), give_up=give_up)


def test_what_a_trial_scores_is_the_mean_over_seeds_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID rose from 10 to 12 and to 15; 1 + 2 + 3 + 6 of 40 pictures show the concept after the attack."""
    found = trial_of(monkeypatch, tmp_path, resolve(Tune, SEARCH))
    assert found.before == 10.0
    assert found.lost == Lost(unrelated=4.0, related=10.0, fid=pytest.approx(35.0))
    regained = found.attacks["AdamW"]
    assert (regained.mean, regained.checkpoints) == (30.0, {"1": 15.0, "2": 45.0})
    assert (regained.low, regained.high) == (wilson(12, 40).low, wilson(12, 40).high)


def test_a_trial_is_given_up_for_more_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has lost 4 + 0.6 x 10 = 10 points."""
    for limit, attacked in ((10.0, True), (9.9, False)):
        search = resolve(Tune, changed("give_up", to=limit, of=SEARCH))
        assert bool(trial_of(monkeypatch, tmp_path / str(limit), search, give_up=True).attacks) == attacked


def test_a_method_with_a_defence_of_its_own_is_no_meta_unlearned_model() -> None:
    found = resolve(Tune, SEARCH)
    for method, model in (("imma", "unlearn"), ("esd-x-1", "meta-unlearn")):
        grid = grid_of(found, Proposal(method=method, settings={}), found.attacks, [0])
        assert grid.models == ("original", model)
