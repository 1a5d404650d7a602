"""What a search tries, and who tries it: stopped, cut off, failed, given up."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

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
from tiny_searches import SEARCH, made_up, write_search


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
