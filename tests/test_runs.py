"""Run folders: how long a run took, its killed parts included; what it logs, keeps and is called."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metaunlearn import runs
from metaunlearn.errors import RunError, UserError
from metaunlearn.folder_lock import LOCKS
from metaunlearn.processes import Processes
from metaunlearn.runs import BEAT, NotThisRunError, RunFolder, short_name


class Clock:
    """A monotonic clock that a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(runs.time, "monotonic", found.monotonic)
    return found


def seconds(folder: Path) -> float:
    return json.loads((folder / "run.json").read_text())["seconds"]


def test_seconds_are_the_sum_over_all_parts(tmp_path: Path, clock: Clock) -> None:
    """Two parts that are cut off after 8 and 6 s, of which a beat noted 7 and 6, and a last one of 2 s: 15 s.

    Between a part's last beat and its end, and between the parts, nothing is counted.
    """
    first = RunFolder.open(tmp_path / "run", {"a": 1}, resume=False)
    clock.now += 7
    first.log({"step": 1})
    clock.now += 1  # less than BEAT after the last note: lost when the process is killed here
    first.log({"step": 2})
    clock.now += 100
    second = RunFolder.open(tmp_path / "run", {"a": 1}, resume=True)
    clock.now += 6
    calls: list[tuple[object, ...]] = []
    second.watched(lambda *arguments: calls.append(arguments))("drawing", 1, 2)
    assert calls == [("drawing", 1, 2)]
    clock.now += 100
    third = RunFolder.open(tmp_path / "run", {"a": 1}, resume=True)
    assert third.seconds() == 13
    clock.now += 2
    third.finish()
    assert third.summary()["seconds"] == seconds(tmp_path / "run") == 15


def test_a_beat_costs_a_write_only_now_and_then(tmp_path: Path, clock: Clock) -> None:
    folder = RunFolder.open(tmp_path / "run", {}, resume=False)
    quiet = folder.watched(None)
    clock.now += BEAT - 0.1
    quiet("drawing", 1, 2)
    assert seconds(tmp_path / "run") == 0
    clock.now += 0.1
    quiet("drawing", 2, 2)
    assert seconds(tmp_path / "run") == BEAT


def test_peak_memory_is_the_largest_of_all_parts(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", {}, resume=False)
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peak_memory_bytes": 10**15}))
    RunFolder.open(tmp_path / "run", {}, resume=True).finish()
    assert json.loads(file.read_text())["peak_memory_bytes"] == 10**15


def test_peak_memory_is_in_bytes(tmp_path: Path) -> None:
    """torch alone takes more than 64 MiB."""
    RunFolder.open(tmp_path / "run", {}, resume=False)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["peak_memory_bytes"] > 64 * 2**20


def test_a_line_that_was_cut_off_is_no_step_that_trackers_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def tracking(names: Any, folder: Path, request: Any, last: float) -> contextlib.nullcontext[None]:
        asked.append(last)
        return contextlib.nullcontext()

    monkeypatch.setattr("metaunlearn.runs.tracking", tracking)
    run = RunFolder.open(tmp_path / "run", {}, resume=False)
    for log in ("", '{"step": 3, "loss": 1.0}\n{"step": 4, "lo'):
        (run.path / "log.jsonl").write_text(log)
        with run.tracked(["tensorboard"]):
            pass
    assert asked == [-1, 3]


def test_what_cannot_go_on_is_told_from_other_mistakes(tmp_path: Path) -> None:
    """Whoever made the folder may begin anew in the first two cases; in the last, work would be lost."""
    RunFolder.open(tmp_path / "run", {"a": 1}, resume=False)
    with pytest.raises(NotThisRunError, match=r"asked for differently \(a\)"):
        RunFolder.open(tmp_path / "run", {"a": 2}, resume=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "years.txt").write_text("of work")
    with pytest.raises(NotThisRunError, match="holds no run"):
        RunFolder.open(tmp_path / "thesis", {"a": 1}, resume=True)
    with pytest.raises(UserError, match="holds a run already") as error:
        RunFolder.open(tmp_path / "run", {"a": 1}, resume=False)
    assert not isinstance(error.value, NotThisRunError)


def test_two_shards_may_open_an_empty_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes while the first one's run.json is written, and not in its place yet."""
    rename, opened = Path.replace, []

    def replace(file: Path, target: Path) -> Path:
        if target.name == "run.json" and not opened:
            opened.append(target)
            RunFolder.open(tmp_path / "run", {"a": 1}, resume=True)
        return rename(file, target)

    monkeypatch.setattr(Path, "replace", replace)
    RunFolder.open(tmp_path / "run", {"a": 1}, resume=True)
    assert opened
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]
    with pytest.raises(NotThisRunError, match="asked for differently"):
        RunFolder.open(tmp_path / "run", {"a": 2}, resume=True)


@pytest.mark.parametrize(("text", "message"), [("[]", "is no record of a run"), ('{"status": "run', "is no JSON")])
def test_a_broken_record_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=message):
        RunFolder.open(tmp_path, {"a": 1}, resume=True)


def test_the_same_weights_may_be_named_otherwise(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {"model": "runs/a", "weights": "1f"}, resume=False)
    RunFolder.open(tmp_path, {"model": "/else/where/a", "weights": "1f"}, resume=True)
    with pytest.raises(NotThisRunError, match=r"asked for differently \(model, weights\)"):
        RunFolder.open(tmp_path, {"model": "runs/b", "weights": "2e"}, resume=True)


def test_a_path_of_somebody_elses_machine_is_told_by_its_last_name() -> None:
    for name in ("/no/such/folder/model", "./nowhere/model", "~/nowhere/model"):
        assert short_name(name) == "model"
    assert short_name("somebody/model") == "somebody/model"


def test_what_was_asked_for_differently_is_said_with_its_values(tmp_path: Path) -> None:
    earlier = {"settings": {"learning_rate": 0.1, "steps": 5, "inner": {"rate": 1}}, "reference": "a", "seed": 0}
    RunFolder.open(tmp_path, {**earlier, "reference_content": "1f"}, resume=False)
    now = {"settings": {"learning_rate": 0.01, "steps": 5, "inner": {"rate": 2}}, "reference": "b", "seed": 1}
    with pytest.raises(NotThisRunError) as error:
        RunFolder.open(tmp_path, {**now, "reference_content": "1f"}, resume=True)
    assert (
        "asked for differently (seed, settings): seed was 0 and is 1, settings.learning_rate was 0.1 and is 0.01, "
        "settings.inner.rate was 1 and is 2. Resume it"
    ) in str(error.value)
    now |= {"more": ["x" * 50]}
    with pytest.raises(NotThisRunError, match=r'more was null and is \["x{37}…, .*, and 1 more'):
        RunFolder.open(tmp_path, {**now, "reference_content": "1f"}, resume=True)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    before = (tmp_path / "run.json").read_text()
    other = (
        "import sys; from pathlib import Path; from metaunlearn.runs import RunFolder\n"
        "print(RunFolder.open(Path(sys.argv[1]), {'a': 1}, resume=True, alone=True).complete_before)"
    )
    call = [sys.executable, "-c", other, str(tmp_path)]
    refused = subprocess.run(call, capture_output=True, text=True, check=False)
    holder = f" ({os.getpid()})" if LOCKS.exists() else ""
    assert f"another process{holder} is at work on the run in" in refused.stderr
    assert (tmp_path / "run.json").read_text() == before
    with folder.alone():
        folder.finish()
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_run_that_broke_off_lets_go_of_its_folder(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    with pytest.raises(KeyboardInterrupt), folder.alone():
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(NotThisRunError):
        RunFolder.open(tmp_path, {"a": 2}, resume=True, alone=True)
    with RunFolder.open(tmp_path, {"a": 1}, resume=True, alone=True).alone():
        pass


def test_a_run_that_failed_before_it_did_anything_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder = RunFolder.open(out, {"a": 1}, resume=False, alone=True)
    folder.state.mkdir()
    with pytest.raises(RunError), folder.alone():
        raise RunError("the edit changed nothing")
    assert not out.exists()


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    """Empty, as it was; and what others keep below it is no run's."""
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    with pytest.raises(RunError), folder.alone():
        raise RunError("the edit changed nothing")
    assert [*tmp_path.iterdir()] == []
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "run.json").write_text("{}")
    with pytest.raises(RunError), folder.alone():
        raise RunError("the loss is not finite")
    assert (tmp_path / "below" / "run.json").exists()


def test_what_fails_after_a_run_is_complete_leaves_it_so(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    with pytest.raises(RunError), folder.alone():
        _finish_and_fail(folder)
    assert folder.complete


def _finish_and_fail(folder: RunFolder) -> None:
    folder.finish(steps=3)
    raise RunError("another process of this run died")


def test_of_several_processes_none_removes_the_folder(tmp_path: Path) -> None:
    """Another one may be writing its pictures there."""
    several = Processes(count=2)
    object.__setattr__(several, "on_main", lambda make: make())
    folder = RunFolder.open(tmp_path / "run", {"a": 1}, resume=False, alone=True, processes=several)
    with pytest.raises(RunError), folder.alone():
        raise RunError("no memory")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_where_folders_cannot_be_locked_a_failure_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaunlearn.runs.locked", lambda folder: None)
    folder = RunFolder.open(tmp_path / "run", {"a": 1}, resume=False, alone=True)
    with pytest.raises(RunError), folder.alone():
        raise RunError("another process makes it now")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


def test_a_run_that_failed_on_its_way_says_why_and_may_go_on(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    folder.log({"step": 1})
    with pytest.raises(RunError), folder.alone():
        raise RunError("the loss is not finite")
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "the loss is not finite")
    with RunFolder.open(tmp_path, {"a": 1}, resume=True, alone=True).alone():
        assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"


def test_another_number_of_threads_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunFolder.open(tmp_path, {"a": 1}, resume=False)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record | {"threads": 64}))
    RunFolder.open(tmp_path, {"a": 1}, resume=True)
    assert "began with 64 threads and goes on with" in caplog.text


def test_what_killed_writers_left_is_gone_from_a_complete_run(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False, alone=True)
    (tmp_path / ".run.json.1f.partial").write_text("{")
    with folder.alone():
        folder.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_shard_that_ends_leaves_what_another_is_writing(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, {"a": 1}, resume=False)
    (tmp_path / ".run.json.1f.partial").write_text("{")
    folder.finish()
    assert (tmp_path / ".run.json.1f.partial").exists()
