"""Searches that take no time, or next to none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench_grids import TINY
from metaunlearn.errors import RunError
from metaunlearn.overrides import as_toml
from metaunlearn.tuning.recipe import Tune
from metaunlearn.tuning.records import Record
from metaunlearn.tuning.space import Proposal
from metaunlearn.tuning.trial import Lost, Outcome, Regained

SEARCH: dict[str, Any] = {
    "method": "esd-x-1",
    "set": {**TINY["set"], "gamma2": 1.0},
    "vary": [
        {"key": "gamma2", "low": 0.5, "high": 2.0, "log": True},
        {"key": "inner_optimizer", "choices": ["sgd", "adamw"]},
        {"key": "inner_learning_rate", "low": 0.01, "high": 0.1, "when": {"inner_optimizer": ["sgd"]}},
        {"key": "inner_learning_rate", "low": 1e-4, "high": 1e-3, "when": {"inner_optimizer": ["adamw"]}},
    ],
    "trials": 2,
    "startup": 1,
    "weights": {"unrelated": 1.0, "related": 0.6, "fid": 0.0},
    "measure": {
        "before": {"concept": 1, "related": 1, "unrelated": 1},
        "after": {"concept": 1, "related": 0, "unrelated": 0},
    },
    "steps": [1, 2],
    "attack": {"learning_rate": 1e-4},
    "attacks": [{"name": "AdamW", "data": "hrm-m", "pictures": 2}],
    "unseen": [{"name": "SGD", "data": "hrm-m", "pictures": 2, "set": {"optimizer": "sgd", "learning_rate": 0.01}}],
}  # fmt: skip
"""Two trials and two baselines of four outer and two attack steps each."""


def write_search(file: Path, search: dict[str, Any]) -> Path:
    lines = ['description = "Tiny."', "[tune]", *(f"{key} = {as_toml(value)}" for key, value in search.items())]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def record(
    trial: int, regained: float | None, lost: float | None, role: Any = "search", status: Any = "complete", **facts: Any
) -> Record:
    """How a trial ended; ``facts`` are its settings, its outcome, its seconds."""
    return Record(
        trial=trial, role=role, status=status, method="esd-x-1", meta=role != "plain", varied={}, regained=regained,
        lost=lost, **{"settings": {}, **facts},
    )  # fmt: skip


def made_up(monkeypatch: pytest.MonkeyPatch, *, breaks: Sequence[float] = ()) -> list[Proposal]:
    """Trials that take no time: the larger gamma_2, the less comes back and the more is lost. Returns what was run."""
    ran: list[Proposal] = []

    def run(tune: Tune, proposal: Proposal, *_: object, attacks: Any, give_up: bool = False, **__: object) -> Outcome:
        ran.append(proposal)
        gamma2 = float(proposal.settings.get("gamma2", 1.0))
        if gamma2 in breaks:
            raise RunError("the loss is not finite")
        lost = Lost(unrelated=gamma2, related=None, fid=None)
        if give_up and tune.give_up is not None and lost.total(tune.weights) > tune.give_up:
            return Outcome(before=0.0, lost=lost, attacks={})
        back = 90.0 if not proposal.meta else 40.0 / (1 + gamma2)
        found = Regained(mean=back, low=0.0, high=100.0, checkpoints={"1": back})
        return Outcome(before=0.0, lost=lost, attacks={attack.name: found for attack in attacks})

    monkeypatch.setattr("metaunlearn.tuning.run.run_trial", run)
    return ran
