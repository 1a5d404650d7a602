"""Locks: one holder at a time, none after its process is gone."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metaunlearn import locks
from metaunlearn.locks import Locks


def test_one_holds_and_the_other_is_told(tmp_path: Path) -> None:
    with Locks(tmp_path).held("a") as mine, Locks(tmp_path).held("a") as other, Locks(tmp_path).held("b") as another:
        assert (mine, other, another) == (True, False, True)
    assert list(tmp_path.glob("*.lock")) == []
    with Locks(tmp_path).held("a") as again:
        assert again


def test_an_error_lets_go(tmp_path: Path) -> None:
    try:
        with Locks(tmp_path).held("a"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not Locks(tmp_path).living("a")


def test_the_lock_of_a_gone_process_is_broken(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    holder = {"host": platform.node(), "pid": process.pid, "process": f"{process.pid} since 1"}
    (tmp_path / "a.lock").write_text(json.dumps(holder))
    assert not Locks(tmp_path).living("a")
    with Locks(tmp_path).held("a") as mine:
        assert mine


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    with Locks(tmp_path).held("a"):
        holder = json.loads((tmp_path / "a.lock").read_text())
        assert Locks(tmp_path).living("a")
        (tmp_path / "a.lock").write_text(json.dumps({**holder, "process": f"{os.getpid()} since 1"}))
        assert not Locks(tmp_path).living("a")


def test_another_host_is_believed_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "process": "1 since 1"}))
    assert Locks(tmp_path).living("a")
    silent = time.time() - 2 * locks.SILENCE
    os.utime(file, (silent, silent))
    assert not Locks(tmp_path).living("a")


def test_the_lock_of_a_lost_task_is_dropped_and_no_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.lock").write_text(json.dumps({"host": "elsewhere", "task": f"of {name}"}))
    Locks(tmp_path).drop({"a": "of a", "b": "an earlier one", "c": "never begun"})
    assert [Locks(tmp_path).living(name) for name in ("a", "b", "c")] == [False, True, False]


def test_a_lock_that_is_touched_is_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine lives, and was only cut off."""
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    with Locks(tmp_path).held("a", "of a"):
        Locks(tmp_path).drop({"a": "of a"}, quiet=0.5)
        assert Locks(tmp_path).living("a")


def test_the_holder_is_heard_of(tmp_path: Path, monkeypatch: object) -> None:
    old = time.time() - 100
    locks_of = Locks(tmp_path)
    stop = threading.Event()
    (tmp_path / "a.lock").write_text(json.dumps({"token": "mine"}))
    os.utime(tmp_path / "a.lock", (old, old))
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)  # type: ignore[attr-defined]
    beat = threading.Thread(target=locks_of._beat, args=("a", "mine", stop))
    beat.start()
    deadline = time.monotonic() + 10
    while (tmp_path / "a.lock").stat().st_mtime < old + 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    beat.join()
    assert (tmp_path / "a.lock").stat().st_mtime > old + 50


def test_a_lock_that_another_host_broke_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its former holder was silent for too long, and lives: it neither touches the lock nor takes it away."""
    monkeypatch.setattr(locks, "HEARTBEAT", 0.01)
    mine, others = Locks(tmp_path), {"host": "elsewhere", "token": "another's"}
    with mine.held("a") as held:
        assert held
        assert mine.owned("a")
        assert not Locks(tmp_path).owned("a")
        with mine.guard():
            (tmp_path / "other").write_text(json.dumps(others))
            os.utime(tmp_path / "other", (1000, 1000))
            (tmp_path / "other").replace(tmp_path / "a.lock")
        time.sleep(0.2)
        assert not mine.owned("a")
        assert (tmp_path / "a.lock").stat().st_mtime == 1000
    assert json.loads((tmp_path / "a.lock").read_text()) == others
    assert not mine.owned("a")


def test_what_holders_need_is_known_while_they_live(tmp_path: Path) -> None:
    (tmp_path / "stale.lock").write_text(json.dumps({"host": "elsewhere", "needs": ["attack-2"]}))
    os.utime(tmp_path / "stale.lock", (0, 0))
    with Locks(tmp_path).held("measure-1", needs=["erase-1", "attack-1"]):
        assert Locks(tmp_path).needed() == {"erase-1", "attack-1"}
    assert Locks(tmp_path).needed() == set()


class Hesitating(Locks):
    """Looks, and takes its time before it acts on what it saw."""

    def living(self, name: str) -> bool:
        found = super().living(name)
        time.sleep(0.02)
        return found


def test_one_of_many_breaks_a_stale_lock(tmp_path: Path) -> None:
    """All of them see that it is stale, and none removes what another one took after that."""
    (tmp_path / "a.lock").write_text(json.dumps({"host": "elsewhere"}))
    os.utime(tmp_path / "a.lock", (0, 0))
    start, got = threading.Barrier(6), []

    def take() -> None:
        start.wait()
        got.append(Hesitating(tmp_path)._take("a") is not None)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 5 + [True]
