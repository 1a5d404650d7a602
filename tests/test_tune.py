"""tune: a search of seconds on Canvas, what it keeps, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench_grids import changed
from conftest import Call
from forked_runs import start
from metaunlearn.config import Counts
from metaunlearn.errors import UserError
from metaunlearn.records import FRONTIER_FILE, TRIALS_FOLDER, TUNE_FILE
from metaunlearn.settings import resolve
from metaunlearn.tuning.figure import figure
from metaunlearn.tuning.recipe import Tune, Vary, Weights, read_tune
from metaunlearn.tuning.records import frontier, read_records
from metaunlearn.tuning.report import report
from metaunlearn.tuning.run import dry_run, read_checked, tune
from metaunlearn.tuning.space import Proposal, default_values, given_value, propose, rounded
from metaunlearn.tuning.trial import Lost, Outcome, Regained
from tiny_searches import SEARCH, made_up, record, write_search

SCRIPT = "import sys; from pathlib import Path; from metaunlearn.tuning.run import tune; "
SCRIPT += "tune(sys.argv[1], Path(sys.argv[2]), trials=int(sys.argv[3]), resume=True)"


@pytest.fixture(scope="session")
def tiny_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``search.toml`` and the whole search in ``out``; tests copy what they change."""
    folder = tmp_path_factory.mktemp("tune")
    result = tune(str(write_search(folder / "search.toml", SEARCH)), folder / "out")
    assert len(result.records) == 4
    return folder


@pytest.fixture
def search(tiny_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(tiny_search, tmp_path / "search", copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path / "search")
    return tmp_path / "search"


def test_every_trial_is_kept_with_all_of_its_settings(tiny_search: Path) -> None:
    out = tiny_search / "out"
    records = read_records(out)
    assert [(one.trial, one.role, one.meta) for one in records] == [
        (0, "plain", False), (1, "default", True), (2, "search", True), (3, "search", True),
    ]  # fmt: skip
    assert {one.status for one in records} == {"complete"}
    for one in records:
        assert one.settings["batch_size"] == 2
        assert one.settings["subset"] == "x"
        assert one.outcome["attacks"]["AdamW"]["checkpoints"].keys() == {"1", "2"}
        assert one.regained == one.outcome["attacks"]["AdamW"]["mean"]
    for one in records[2:]:
        assert 0.5 <= one.settings["gamma2"] <= 2.0
        low, high = (0.01, 0.1) if one.settings["inner_optimizer"] == "sgd" else (1e-4, 1e-3)
        assert low <= one.settings["inner_learning_rate"] <= high
    # What does not change between trials was made once; what an attack left is dropped when it is measured.
    kinds = [folder.name.split("-")[0] for folder in (out / "cells").iterdir()]
    assert {kind: kinds.count(kind) for kind in ("pictures", "data", "erase", "attack")} == {
        "pictures": 1, "data": 1, "erase": 4, "attack": 0,
    }  # fmt: skip
    assert len(list((out / "shared").rglob("*.safetensors"))) == 1


def test_what_a_search_writes(tiny_search: Path) -> None:
    page = (tiny_search / "out" / FRONTIER_FILE).read_text()
    assert "| plain |" in page
    assert "| default |" in page
    assert "4 trials have ended" in page
    drawing = xml.etree.ElementTree.fromstring((tiny_search / "out" / "frontier.svg").read_text())
    words = {element.text for element in drawing.iter() if element.text}
    assert {"plain", "default"} <= words
    assert "var(--" not in (tiny_search / "out" / "frontier.svg").read_text()


def test_finished_trials_are_not_repeated(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_text() for file in Path("out", TRIALS_FOLDER).iterdir()}
    ran = made_up(monkeypatch)
    assert len(tune("search.toml", Path("out"), resume=True).records) == 4
    assert ran == []
    assert len(tune("search.toml", Path("out"), trials=4, resume=True).records) == 6
    assert len(ran) == 2
    now = {file.name: file.read_text() for file in Path("out", TRIALS_FOLDER).iterdir()}
    assert {name: now[name] for name in before} == before


def test_two_processes_share_a_search(tiny_search: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_search / "out", out, copy_function=shutil.copy)
    both = [start(SCRIPT, tiny_search / "search.toml", out, 4) for _ in range(2)]
    for process in both:
        process.join(timeout=300)
    assert [process.exitcode for process in both] == [0, 0]
    assert [one.trial for one in read_records(out)] == list(range(6))
    assert not list((out / "locks").rglob("*.lock"))


def test_workers_share_a_search(search: Path) -> None:
    result = tune("search.toml", Path("out"), trials=4, workers=2, resume=True)
    assert [one.trial for one in result.records] == list(range(6))


def test_the_frontier_is_what_nothing_beats() -> None:
    """(lost, regained): 33 is beaten by 2 (same loss), 4 by 1, 6 was not attacked; 5 ties with 2 and stays."""
    records = [
        record(0, 90, 0.5, role="plain"), record(1, 20, 2.0), record(2, 10, 4.0), record(33, 11, 4.0),
        record(4, 30, 2.5), record(5, 10, 4.0), record(6, None, 30.0, status="given up"),
    ]  # fmt: skip
    assert [one.trial for one in frontier(records)] == [0, 1, 2, 5]
    assert frontier([]) == []
    drawing = figure(records)
    assert ">plain<" in drawing
    assert ">2<" in drawing
    assert ">33<" not in drawing
    assert ">33<" in figure([*records[:3], record(33, 11, 4.0, role="start")])
    assert ">33<" not in figure([record(1, 20, 2.0, role="default"), record(33, 20, 2.0, role="start")])
    assert figure([]).startswith("<svg xmlns")


def test_what_is_lost_is_one_figure() -> None:
    """1 x 3 + 0.6 x 5 + 0.1 x 20 = 8; the gain of two points in the second model makes up for nothing."""
    weights = Weights()
    assert Lost(unrelated=3.0, related=5.0, fid=20.0).total(weights) == pytest.approx(8.0)
    assert Lost(unrelated=-2.0, related=5.0, fid=None).total(weights) == pytest.approx(3.0)


def test_the_worst_attack_counts() -> None:
    one = Regained(mean=10.0, low=0.0, high=20.0, checkpoints={"1": 10.0})
    other = Regained(mean=30.0, low=20.0, high=40.0, checkpoints={"1": 30.0})
    lost = Lost(unrelated=0.0, related=0.0, fid=0.0)
    assert Outcome(before=0.0, lost=lost, attacks={"a": one, "b": other}).worst == 30.0
    assert Outcome(before=0.0, lost=lost, attacks={}).worst is None


def test_a_mixture_replaces_the_one_attacker() -> None:
    mixture = [{"optimizer": "sgd", "learning_rate": 0.1, "steps": 1}]
    vary = [{"key": "attackers", "choices": [[], mixture]}, *SEARCH["vary"]]
    found = resolve(Tune, changed("vary", to=vary, of=SEARCH))
    first = propose(found, lambda vary: vary.choices[1] if vary.key == "attackers" else vary.low)
    assert "inner_optimizer" not in set(first.settings) - set(SEARCH["set"])
    assert first.settings["attackers"] == '[{optimizer = "sgd", learning_rate = 0.1, steps = 1}]'
    second = propose(found, lambda vary: vary.choices[0] if vary.choices else vary.high)
    assert (second.settings["attackers"], second.settings["inner_learning_rate"]) == ("[]", "0.1")


def test_drawn_numbers_have_four_digits_and_counts_are_whole() -> None:
    rate, steps = Vary(key="inner_learning_rate", low=1e-6, high=1e6), Vary(key="inner_steps", low=1, high=8)
    assert [rounded(rate, value) for value in (0.000123456, 123456.0)] == [0.0001235, 123500.0]
    assert (rounded(steps, 3.0), type(rounded(steps, 3.0))) == (3, int)
    assert type(given_value(steps, 3.0)) is int


def test_the_sampler_learns_from_the_default_where_it_is_in_range() -> None:
    inside = changed("set", "inner_learning_rate", to=0.05, of=SEARCH)
    assert default_values(resolve(Tune, inside)) == {
        "gamma2": 1.0, "inner_optimizer": "sgd", "inner_learning_rate at inner_optimizer sgd": 0.05,
    }  # fmt: skip
    assert default_values(resolve(Tune, changed("set", "gamma2", to=9.0, of=inside))) is None


def test_a_report_has_both_sets_side_by_side(search: Path, call: Call) -> None:
    summary = report("search.toml", Path("out"), trials=[2])
    assert [(one["trial"], one["role"]) for one in summary["trials"]] == [(0, "plain"), (1, "default"), (2, "search")]
    assert all(one["seen"]["attacks"].keys() == {"AdamW"} for one in summary["trials"])
    assert all(one["unseen"]["attacks"].keys() == {"SGD"} for one in summary["trials"])
    text = Path("out/report.md").read_text(encoding="utf-8")
    assert "| attack | plain | default | 2 |" in text
    assert "worst of never seen" in text
    outcome = call("tune", "search.toml", "--out", "out", "--report", "--trial", "7")
    assert (outcome.code, "no finished trial 7" in outcome.err) == (2, True)


def test_other_seeds_of_a_report_are_the_same_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is of the frontier, here the default and the two trials, on its own seeds; never of what failed."""
    made_up(monkeypatch)
    file = tmp_path / "search.toml"
    records = tune(str(write_search(file, SEARCH)), tmp_path / "out").records
    write_search(file, changed("report_seeds", to=[7, 8], of=SEARCH))
    record(9, None, None, status="failed").write(tmp_path / "out")
    asked = []

    def run(tune: Tune, proposal: Proposal, *_: object, attacks: Any, seeds: Any, **__: object) -> Outcome:
        asked.append((attacks[0].name, tuple(seeds)))
        found = Regained(mean=50.0, low=0.0, high=100.0, checkpoints={"1": 50.0})
        lost = Lost(unrelated=None, related=None, fid=None)
        return Outcome(before=0.0, lost=lost, attacks={attack.name: found for attack in attacks})

    monkeypatch.setattr("metaunlearn.tuning.report.run_trial", run)
    summary = report(str(file), tmp_path / "out")
    assert sorted(one["trial"] for one in summary["trials"]) == [one.trial for one in records]
    assert summary["seeds"] == [7, 8]
    assert asked == [("AdamW", (7, 8)), ("SGD", (7, 8))] * 4
    with pytest.raises(UserError, match="no finished trial 9"):
        report(str(file), tmp_path / "out", trials=[9])


def test_a_dry_run_says_what_a_trial_costs(search: Path, call: Call) -> None:
    found = json.loads(call("tune", "search.toml", "--out", "new", "--dry-run", "--json").out)
    assert not Path("new").exists()
    wanted = {"outer_steps": 4, "attack_steps": 2, "pictures": 5, "seconds": None, "trials": 4}
    assert {key: found[key] for key in wanted} == wanted
    found = json.loads(call("tune", "search.toml", "--out", "out", "--dry-run", "--trials", "5", "--json").out)
    assert (found["trials"], found["seconds"] > 0, found["once"]) == (3, True, 0)
    assert "one trial: 4 outer steps" in call("tune", "search.toml", "--out", "out", "--dry-run").out
    elsewhere = call("tune", "search.toml", "--out", "out", "--dry-run", "--device", "cuda", "--json")
    assert json.loads(elsewhere.out)["once"] == 2  # What a GPU draws to train on, and the original measured there.


def test_the_time_of_a_trial_is_the_mean_without_the_baselines(tmp_path: Path) -> None:
    recipe = write_search(tmp_path / "search.toml", SEARCH)
    for number, (role, seconds) in enumerate((("plain", 1.0), ("default", 1.0), ("search", 20.0), ("search", 40.0))):
        record(number, 10.0 + number, 1.0, role, seconds=seconds).write(tmp_path / "out")
    assert len(read_records(tmp_path / "out")) == 4
    assert dry_run(str(recipe), tmp_path / "out").seconds == 30.0


def test_a_dry_run_counts_seconds_on_the_device_that_is_asked_for(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device a thousand times as fast takes a thousandth; of one that is not here nothing is known."""
    speeds = {"cpu": 1e9, "cuda": 1e12}
    monkeypatch.setattr("metaunlearn.bench.needs.matrix_speed", lambda device: speeds[device])
    recipe = write_search(tmp_path / "search.toml", SEARCH)
    arguments = ("tune", str(recipe), "--out", str(tmp_path / "new"), "--dry-run")
    monkeypatch.setattr("metaunlearn.bench.needs._is_here", lambda device: True)
    on_cpu, on_gpu = (
        json.loads(call(*arguments, "--device", device, "--json").out)["seconds_erasing"] for device in speeds
    )
    assert on_gpu == pytest.approx(on_cpu / 1000)
    monkeypatch.setattr("metaunlearn.bench.needs._is_here", lambda device: device == "cpu")
    assert json.loads(call(*arguments, "--device", "cuda", "--json").out)["seconds_erasing"] is None
    assert "4 outer steps (time not known)" in call(*arguments, "--device", "cuda").out


def test_the_command_line(search: Path, call: Call) -> None:
    outcome = call("tune", "search.toml", "--out", "out", "--resume", "--json")
    assert (outcome.code, json.loads(outcome.out)["trials"]) == (0, 4)
    outcome = call("tune", "search.toml", "--out", "out", "--resume")
    assert "4 trials have ended; the frontier:" in outcome.out
    assert "figure: out/frontier.svg" in outcome.out
    for wrong, message in (
        (["--report", "--workers", "2"], "--report searches nothing"),
        (["--trial", "1"], "give both, or neither"),
        ([], "--resume"),
    ):
        outcome = call("tune", "search.toml", "--out", "out", *wrong)
        assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_another_recipe_is_refused(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch)
    write_search(Path("search.toml"), changed("steps", to=[1, 3], of=SEARCH))
    with pytest.raises(UserError, match=r"asked for differently \(steps\)"):
        tune("search.toml", Path("out"), resume=True)
    write_search(Path("search.toml"), changed("trials", to=3, of=changed("unseen", to=[], of=SEARCH)))
    assert len(tune("search.toml", Path("out"), resume=True).records) == 5
    (Path("other")).mkdir()
    Path("other/thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds no search"):
        tune("search.toml", Path("other"))
    assert not Path("other", TUNE_FILE).exists()


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("vary", 0, "key"), "gama2", "unknown key 'gama2'. Did you mean 'gamma2'"),
        (("vary", 0, "low"), 3.0, "low must be below high"),
        (("vary", 0, "low"), 2.0, "low must be below high"),
        (("vary", 0, "low"), 0.0, "needs a range above 0"),
        (("vary", 1, "choices"), ["sgd", "adamw", "adamm"], "inner_optimizer = 'adamm'"),
        (("vary", 1, "choices"), ["sgd", "adamm", "adamw"], "inner_optimizer = 'adamm'"),
        (("vary", 2, "when"), {}, "'inner_learning_rate' varies twice"),
        (("vary", 2, "when"), {"zeta": [1.0]}, "'zeta' must be a key with choices"),
        (("vary", 0), {"key": "gamma2", "low": -1.0, "high": 1.0}, "gamma2 = '-1.0'"),
        (("vary", 0), {"key": "retain_dropout", "low": 0.0, "high": 1.0}, "retain_dropout = '1.0'"),
        (("vary", 0), {"key": "method", "choices": ["esd-y-1"]}, "unknown method 'esd-y-1'"),
        (("start",), [{"zeta": 1.0}], "'zeta' does not vary"),
        (("start",), [{"gamma2": 5.0}], "gamma2 = 5.0 is outside of its range"),
        (("set", "stepps"), 5, "unknown key 'stepps'"),
        (("steps",), [], "needs steps"),
        (("concept",), "knive", "Did you mean 'knife'"),
        (("attacks", 0, "data"), "clean", "is benign"),
        (("attacks", 0, "set"), {"learning_rat": 1}, "unknown key 'learning_rat'"),
        (("unseen", 0, "name"), "AdamW", "two 'AdamW'"),
        (("unseen", 0), {"name": "8 bits", "kind": "quantize"}, "trains no model"),
        (("measure", "before", "related"), 0, "weights.related = 0"),
        (("trails",), 5, "unknown key 'trails'"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, path: tuple[Any, ...], to: Any, message: str) -> None:
    recipe = write_search(tmp_path / "search.toml", changed(*path, to=to, of=SEARCH))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        read_checked(str(recipe))


def test_what_weighs_nothing_needs_no_pictures(tmp_path: Path) -> None:
    without = changed("measure", "before", "related", to=0, of=changed("weights", "related", to=0.0, of=SEARCH))
    assert read_tune(str(write_search(tmp_path / "search.toml", without))).tune.weights.related == 0


def test_a_recipe_without_a_search_is_refused() -> None:
    with pytest.raises(UserError, match=r"no \[tune\].*frontier-canvas"):
        read_tune("small")


def test_the_shipped_search_is_possible() -> None:
    found = read_checked("frontier-canvas").tune
    assert found.measure.after == Counts(concept=60, related=0, unrelated=0)
    assert default_values(found) is not None  # What small says lies inside what is searched.
    assert {attack.name for attack in found.unseen} & {attack.name for attack in found.attacks} == set()


def test_a_missing_optuna_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    recipe = write_search(tmp_path / "search.toml", SEARCH)
    with pytest.raises(UserError, match=r"pip install 'metaunlearn\[search\]'"):
        tune(str(recipe), tmp_path / "out")
    assert not (tmp_path / "out").exists()
