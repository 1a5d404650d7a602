"""What a search tries, and who tries it: stopped, cut off, failed, given up."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench_grids import changed
from metaunlearn.overrides import as_text
from metaunlearn.records import FRONTIER_FILE
from metaunlearn.settings import resolve
from metaunlearn.tuning.recipe import Tune
from metaunlearn.tuning.records import read_records
from metaunlearn.tuning.run import tune
from metaunlearn.tuning.space import Proposal
from metaunlearn.tuning.study import Search
from metaunlearn.tuning.tables import _short
from metaunlearn.tuning.trial import Outcome
from tiny_searches import SEARCH, made_up, record, write_search


def cut_off_in(monkeypatch: pytest.MonkeyPatch, ran: list[Proposal], *trials: int) -> None:
    """Ctrl-C in each of ``trials``, numbered from 1 in the order of ``ran``: it has run, and nobody was told."""
    finished: Any = import_module("metaunlearn.tuning.run").run_trial

    def interrupted(*rest: Any, **more: Any) -> Outcome:
        outcome: Outcome = finished(*rest, **more)
        if len(ran) in trials:
            raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr("metaunlearn.tuning.run.run_trial", interrupted)


def test_a_search_stopped_between_trials_proposes_what_an_unbroken_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_search(tmp_path / "search.toml", SEARCH))
    ran = made_up(monkeypatch)
    tune(recipe, tmp_path / "whole", trials=8)
    whole = list(ran)
    ran.clear()
    for trials in (0, 3, 5, 8):
        tune(recipe, tmp_path / "parts", trials=trials, resume=True)
    assert ran == whole
    assert len({as_text(proposal.settings) for proposal in whole}) == 9  # The plain model has the default's settings.


def test_a_trial_that_was_cut_off_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third trial: what is finished stays, the same settings are tried again, under the same number."""
    recipe = str(write_search(tmp_path / "search.toml", SEARCH))
    ran = made_up(monkeypatch)
    cut_off_in(monkeypatch, ran, 3)
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, tmp_path / "out")
    assert [one.trial for one in read_records(tmp_path / "out")] == [0, 1]
    cut_off = ran[-1]
    result = tune(recipe, tmp_path / "out", resume=True)
    assert [one.trial for one in result.records] == [0, 1, 2, 4]  # Optuna counts the one that was cut off as well.
    assert result.records[2].proposal == cut_off == ran[3]


def test_a_search_cut_off_inside_a_trial_tries_what_an_unbroken_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: in a trial whose values were drawn at random, and in one that follows from what had been seen."""
    recipe = str(write_search(tmp_path / "search.toml", SEARCH))
    ran = made_up(monkeypatch)
    tune(recipe, tmp_path / "whole", trials=9)
    whole = list(ran)
    ran.clear()
    cut_off_in(monkeypatch, ran, 3, 8)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(recipe, tmp_path / "parts", trials=9, resume=True)
    tune(recipe, tmp_path / "parts", trials=9, resume=True)
    assert ran == [*whole[:3], *whole[2:7], *whole[6:]]


def test_a_limit_counts_the_settings_that_the_recipe_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed("start", to=[{"gamma2": 0.75}, {"gamma2": 1.25}], of=SEARCH)
    file = str(write_search(tmp_path / "search.toml", recipe))
    made_up(monkeypatch)
    for trials, roles in ((0, []), (1, ["start"]), (3, ["start", "start", "search"])):
        result = tune(file, tmp_path / "out", trials=trials, resume=True)
        assert [one.role for one in result.records] == ["plain", "default", *roles]
    assert [one.settings["gamma2"] for one in result.records[2:4]] == [0.75, 1.25]


def test_settings_to_begin_with_are_not_lost_when_their_trial_is_cut_off_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve(Tune, changed("start", to=[{"gamma2": 0.75}], of=SEARCH))
    search = Search(found, tmp_path)
    for _ in range(2):
        with search.next(1) as claim:
            assert claim is not None
            search.tell(claim, record(claim.trial, 10.0, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_claim", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), search.next(1):
            pass
    with Search(found, tmp_path).next(1) as again:
        assert again is not None
        assert (again.trial, again.proposal.settings["gamma2"]) == (2, "0.75")


def test_a_trial_that_breaks_down_is_kept_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_search(tmp_path / "search.toml", changed("start", to=[{"gamma2": 0.75}], of=SEARCH))
    made_up(monkeypatch, breaks=[0.75])
    result = tune(str(recipe), tmp_path / "out")
    assert [(one.trial, one.role, one.status) for one in result.records if one.status != "complete"] == [
        (2, "start", "failed")
    ]
    assert result.records[2].message == "the loss is not finite"
    assert result.to_dict()["failed"] == [2]
    page = (tmp_path / "out" / FRONTIER_FILE).read_text()
    assert "2 (start) (failed)" in page
    assert "*start*: settings that the recipe gives" in page


def test_what_has_lost_too_much_is_not_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = changed("start", to=[{"gamma2": 2.0}], of=changed("give_up", to=1.5, of=SEARCH))
    made_up(monkeypatch)
    result = tune(str(write_search(tmp_path / "search.toml", given_up)), tmp_path / "out", trials=1)
    assert (result.records[2].status, result.records[2].regained, result.records[2].lost) == ("given up", None, 2.0)
    assert result.records[2] not in result.frontier


def test_the_baselines_are_attacked_whatever_they_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain model and the default have lost 1.0."""
    recipe = write_search(tmp_path / "search.toml", changed("give_up", to=0.5, of=SEARCH))
    made_up(monkeypatch)
    result = tune(str(recipe), tmp_path / "out", trials=0)
    assert [one.status for one in result.records] == ["complete", "complete"]


def test_the_study_holds_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back, then what is lost, both to be minimised; 100 % of what was given up. Logarithms are kept."""
    whole = {"key": "steps", "low": 1, "high": 8, "log": True}
    search = changed("vary", to=[*SEARCH["vary"], whole], of=changed("give_up", to=1.5, of=SEARCH))
    search = changed("start", to=[{"gamma2": 2.0}], of=changed("set", "inner_learning_rate", to=0.05, of=search))
    made_up(monkeypatch)
    tune(str(write_search(tmp_path / "search.toml", search)), tmp_path / "out", trials=1)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "out" / "journal.log"))
    study = optuna.load_study(study_name="tune", storage=optuna.storages.JournalStorage(backend))
    assert [one.values for one in study.trials] == [[90.0, 1.0], [20.0, 1.0], [100.0, 2.0]]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert study.trials[1].params == {
        "gamma2": 1.0, "inner_optimizer": "sgd", "inner_learning_rate at inner_optimizer sgd": 0.05, "steps": 4,
    }  # fmt: skip
    assert {name for name, kind in study.trials[2].distributions.items() if getattr(kind, "log", False)} == {
        "gamma2", "steps",
    }  # fmt: skip


def proposals(out: Path, **change: Any) -> list[Proposal]:
    """Of eight trials of ``SEARCH``, with keys of it changed: gamma_2 is lost, and its inverse comes back."""
    out.mkdir()
    search, found = Search(resolve(Tune, {**SEARCH, **change}), out), []
    for _ in range(10):
        with search.next(8) as claim:
            assert claim is not None
            gamma2 = float(claim.proposal.settings["gamma2"])
            search.tell(claim, record(claim.trial, 1 / gamma2, gamma2))
            found.append(claim.proposal)
    return found


def test_the_sampler_takes_the_recipes_seed_and_startup(tmp_path: Path) -> None:
    found = [
        proposals(tmp_path / str(number), **change)
        for number, change in enumerate(({}, {"seed": 1}, {"startup": 5}, {"startup": 100}))
    ]
    assert len({str(one) for one in found}) == 4
    assert found[0][:2] == found[1][:2]


def test_a_living_trial_is_not_taken_up(tmp_path: Path) -> None:
    found = resolve(Tune, SEARCH)
    (tmp_path / "out").mkdir()
    one, other = Search(found, tmp_path / "out"), Search(found, tmp_path / "out")
    with one.next(0) as first, other.next(0) as second, one.next(0) as third:
        assert first is not None
        assert second is not None
        assert (first.role, second.role, third) == ("plain", "default", None)
    with other.next(0) as again:  # Nobody told the study how the first one ended.
        assert again is not None
        assert (again.trial, again.role, again.proposal) == (0, "plain", first.proposal)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([{"optimizer": "sgd", "learning_rate": 0.01, "steps": 3}, {"optimizer": "adam"}], "sgd/0.01/3; adam"),
        (["a dog", "a cat"], "a dog; a cat"),
        ([], "none"),
        (0.25, "0.25"),
    ],
)
def test_a_setting_of_any_kind_has_a_cell(value: object, shown: str) -> None:
    assert _short(value) == shown
