"""``keep_checkpoints = false``: when an attack's models go, what holds them, and what stays of them. Cells are made of
nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench_grids import cells_of_nothing, changed, plan_of, write_recipe
from metaunlearn.bench.recipe import read_bench
from metaunlearn.bench.results import Found, Results
from metaunlearn.bench.run import run_grid
from metaunlearn.bench.store import Store
from metaunlearn.locks import Locks
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.report.grid.settings import resolved

DROPPING = changed("keep_checkpoints", to=False)
OTHER = changed("measure", "last", "concept", to=2, of=DROPPING)
"""Another grid on the same attack: it measures the last state by another count."""


@pytest.fixture(autouse=True)
def of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells_of_nothing(monkeypatch)
    monkeypatch.chdir(tmp_path)


def bench(name: str, grid: dict[str, Any], **asked: Any) -> int:
    """The grid's call; how many cells it made."""
    made: int = run_grid(str(write_recipe(Path(f"{name}.toml"), grid)), Path("out"), **asked)["made"]
    return made


def attacks() -> list[Path]:
    return list(Path("out").glob("cells/attack-*"))


def test_an_attack_goes_when_its_states_are_measured() -> None:
    bench("one", DROPPING, only=["step=1"])
    assert len(attacks()) == 1
    assert bench("one", DROPPING) > 0
    assert attacks() == []


def test_what_another_grid_of_the_folder_still_needs_stays_until_it_is_measured() -> None:
    bench("other", OTHER, only=["attack=before"])
    bench("one", DROPPING)
    assert len(attacks()) == 1
    assert bench("other", OTHER) == 1
    assert attacks() == []


def test_what_a_killed_process_did_not_drop_goes_at_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", lambda *_: None)
        bench("one", DROPPING)
    assert len(attacks()) == 1
    assert bench("one", DROPPING) == 0
    assert attacks() == []


def test_what_a_grid_held_that_was_given_up_goes_at_the_next_call() -> None:
    bench("other", OTHER, only=["attack=before"])
    bench("one", DROPPING)
    Path("out/plans/other.json").unlink()
    assert bench("one", DROPPING) == 0
    assert attacks() == []


def test_a_grid_that_is_done_holds_nothing() -> None:
    bench("other", OTHER)
    assert bench("one", DROPPING) == 2  # The attack, which the other one dropped, and the state of another count.
    assert attacks() == []


def test_what_another_grid_keeps_stays() -> None:
    bench("other", changed("keep_checkpoints", to=True, of=OTHER))
    bench("one", DROPPING)
    assert len(attacks()) == 1


def test_what_a_living_process_needs_stays() -> None:
    """It runs the same recipe with other settings, say, whose plan is not told any more."""
    [attack] = [name for name in plan_of(DROPPING).cells if name.startswith("attack-")]
    with Locks(Path("out/locks")).held("measure-0", needs=[attack]):
        Path("out/cells").mkdir()
        bench("one", DROPPING)
        assert [folder.name for folder in attacks()] == [attack]


def test_an_attack_that_vanishes_while_it_is_read_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process of an earlier version, or a hand: the call ends with every state, and nothing has failed."""
    times = []

    def measure(folder: Path, attack: Path | None = None, **_: Any) -> None:
        if attack is not None:
            times.append(attack)
            if len(times) == 1:
                shutil.rmtree(attack)
                raise FileNotFoundError(attack / "step-000001")
        (folder / SCORES_FILE).write_text(json.dumps({"scores": {}}))

    monkeypatch.setattr("metaunlearn.bench.kinds.measure.make", measure)
    assert bench("one", DROPPING) == 8  # Of seven cells the attack twice.
    assert len(times) == 3


def test_the_settings_of_dropped_attacks_are_known() -> None:
    bench("one", DROPPING)
    assert attacks() == []
    recipe = read_bench("one.toml")
    found: Found = Results(recipe, plan_of(DROPPING), Store(Path("out"))).found()
    parts = {part.title: part.same for part in resolved(found, Path("out"))}
    assert parts["Attacking"]["learning_rate"] == 1e-4
    assert parts["Erasing"]["steps"] == 4


def test_a_cell_by_itself_is_no_state() -> None:
    """``--only cell=erase-...`` makes the erased model and what it needs."""
    found = run_grid(str(write_recipe(Path("one.toml"), DROPPING)), Path("out"), only=["cell=erase-"])
    assert (found["rows"], found["made"], found["report"]) == (0, 2, None)
    assert {folder.name.split("-")[0] for folder in Path("out/cells").iterdir()} == {"pictures", "erase"}
