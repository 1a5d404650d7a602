"""The search itself: an Optuna study in a journal that several processes write, and who takes which trial.

Optuna's number of a trial is the one that people see, but for a trial that was cut off: it is given up there and put
into the queue again, and keeps its first number outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from metaunlearn.errors import UserError
from metaunlearn.locks import Locks
from metaunlearn.overrides import as_text
from metaunlearn.tuning.recipe import Tune, Vary
from metaunlearn.tuning.records import BASELINES, Record, Role
from metaunlearn.tuning.space import (
    Proposal,
    default_of,
    default_values,
    in_whole_numbers,
    propose,
    rounded,
    start_values,
)

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

EXTRA = "search"
"""The extra of this package that brings Optuna."""
JOURNAL = "journal.log"
STUDY = "tune"
WORST = 100.0
"""Percent that the sampler is told of a trial that was given up: it had lost too much to be attacked."""


def optuna_module() -> ModuleType:
    """Optuna, quiet; UserError when it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(
            f"a search (metaunlearn tune) needs Optuna: pip install 'metaunlearn[{EXTRA}]'. "
            "What was found already can be reported without it (--report)."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that this process is to run."""

    optuna_number: int
    trial: int
    """The number that people see."""
    role: Role
    proposal: Proposal


class Search:
    """The study in one output folder."""

    def __init__(self, tune: Tune, out: Path) -> None:
        optuna = optuna_module()
        self.tune = tune
        # Of two folders, for a lock is taken inside the guard and has a guard of its own.
        self._alone, self._locks = Locks(out / "locks" / "search"), Locks(out / "locks" / "trials")
        with self._alone.guard():
            backend = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
            self._study = optuna.create_study(
                study_name=STUDY,
                storage=optuna.storages.JournalStorage(backend),
                sampler=_sampler(optuna, tune),
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            if not self._study.get_trials(deepcopy=False):
                self._enqueue_first()

    def _enqueue_first(self) -> None:
        self._study.enqueue_trial({}, user_attrs={"role": "plain"})
        # Its values are the sampler's, too, where they lie inside what is searched.
        self._study.enqueue_trial(default_values(self.tune) or {}, user_attrs={"role": "default"})

    def _enqueue_start(self) -> None:
        """The recipe's next settings to begin with, if any are left."""
        begun = len({_number(trial) for trial in self._trials() if _role(trial) == "start"})
        for values in self.tune.start[begun : begun + 1]:
            self._study.enqueue_trial(start_values(self.tune, values), user_attrs={"role": "start"})

    @contextlib.contextmanager
    def next(self, limit: int) -> Iterator[Claim | None]:
        """A trial to run in the body, held by this process; None when ``limit`` trials, baselines aside, are taken."""
        with contextlib.ExitStack() as held:
            with self._alone.guard():
                self._take_up_abandoned()
                trial = None
                if self._waiting() or self._taken() < limit:
                    if not self._waiting():
                        self._enqueue_start()
                    trial = self._study.ask()
                    held.enter_context(self._locks.held(f"trial-{trial.number}"))
            yield None if trial is None else self._claim(trial)

    def tell(self, claim: Claim, record: Record) -> None:
        """Let the sampler learn from a finished trial."""
        if record.status == "failed":
            self._study.tell(claim.optuna_number, state=optuna_module().trial.TrialState.FAIL)
        else:
            regained = WORST if record.regained is None else record.regained
            self._study.tell(claim.optuna_number, values=[regained, record.lost])

    def _trials(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        wanted = [optuna_module().trial.TrialState[name] for name in states] or None
        return self._study.get_trials(deepcopy=False, states=wanted)

    def _waiting(self) -> bool:
        return bool(self._trials("WAITING"))

    def _taken(self) -> int:
        """Trials of the search, whatever became of them; one that was cut off counts once with its successors."""
        return len({_number(trial) for trial in self._trials() if _role(trial) not in BASELINES})

    def _take_up_abandoned(self) -> None:
        """Trials whose process is gone are put into the queue again, as they were."""
        for trial in self._trials("RUNNING"):
            if not self._locks.living(f"trial-{trial.number}"):
                again = {"role": _role(trial), "again": _number(trial)}
                self._study.tell(trial.number, state=optuna_module().trial.TrialState.FAIL)
                self._study.enqueue_trial(trial.system_attrs.get("fixed_params", {}) | trial.params, user_attrs=again)

    def _claim(self, trial: optuna.Trial) -> Claim:
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        role = _role(frozen)
        if role in BASELINES:
            values = default_values(self.tune) if role == "default" else None
            proposal = default_of(self.tune, meta=role != "plain")
            if values is not None:
                propose(self.tune, lambda vary: _suggest(trial, vary))
        else:
            proposal = propose(self.tune, lambda vary: _suggest(trial, vary))
        return Claim(optuna_number=trial.number, trial=_number(frozen), role=role, proposal=proposal)


def _number(trial: optuna.trial.FrozenTrial) -> int:
    number: int = trial.user_attrs.get("again", trial.number)
    return number


def _role(trial: optuna.trial.FrozenTrial) -> Role:
    role: Role = trial.user_attrs.get("role", "search")
    return role


def _suggest(trial: optuna.Trial, vary: Vary) -> Any:
    """The study's value of ``vary``, as a recipe would say it."""
    if vary.choices:
        by_text = {as_text(choice): choice for choice in vary.choices}
        return by_text[str(trial.suggest_categorical(vary.name, list(by_text)))]
    low, high = vary.low or 0, vary.high or 0
    if in_whole_numbers(vary):
        return trial.suggest_int(vary.name, int(low), int(high), log=vary.log)
    return rounded(vary, trial.suggest_float(vary.name, float(low), float(high), log=vary.log))


def _sampler(optuna: Any, tune: Tune) -> Any:
    """TPE with a seed of each trial's own, so that a search that was stopped goes on as it would have gone on.

    A trial that is run again has the seed of the next one, and needs none: it brings all of its values.
    """

    class ByNumber(optuna.samplers.BaseSampler):  # type: ignore[misc]
        def before_trial(self, study: Any, trial: Any) -> None:
            repeats = sum("again" in one.user_attrs for one in study.get_trials(deepcopy=False)[: trial.number])
            seed = (tune.seed * 1_000_003 + trial.number - repeats) % 2**32
            self._of_trial = optuna.samplers.TPESampler(seed=seed, n_startup_trials=tune.startup)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._of_trial.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._of_trial.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._of_trial.sample_independent(study, trial, name, distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            pass  # TPE keeps nothing between trials beside what the study holds.

    return ByNumber()
