"""One maker a cell: lock files that hold while their process lives.

A lock is a file that only one process can create; it names its host and process, and a thread touches it while the
work goes on. A lock is stale, and may be broken, when its process is gone (same host) or when nothing has touched it
for ``SILENCE`` seconds (another host, on a shared file system). Who gave the work away and is told that its maker is
lost need not wait so long: the lock bears the name of the task, and ``drop`` breaks it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEARTBEAT = 10.0
"""Seconds between two touches."""
SILENCE = 300.0
"""Seconds after which a lock of another host counts as stale."""


class Locks:
    """The locks of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def held(self, name: str, task: str = "") -> Iterator[bool]:
        """Hold the lock ``name`` in the body, for ``task`` if somebody gave that away; yields False, and holds nothing,
        when a living process has it."""
        if not self._take(name, task):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(name, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            self._file(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Alone among the processes that use this folder, for moments only: the system frees it when one dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "guard").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def living(self, name: str) -> bool:
        """Whether a process that lives holds the lock ``name``."""
        touched, holder = self._touched(name), self._holder(name)
        if touched is None:
            return False
        if holder.get("host") == platform.node():
            return _process(holder.get("pid", 0)) == holder.get("process")
        return time.time() - touched < SILENCE

    def drop(self, tasks: Mapping[str, str], *, quiet: float = 0.0) -> None:
        """Break the locks (the keys) that are held for these tasks, whose processes are lost, unless one is touched
        within ``quiet`` seconds: a machine that cannot be heard from may still be at work."""
        seen = {name: self._touched(name) for name in tasks}
        time.sleep(quiet)
        with self.guard():
            for name, task in tasks.items():
                if self._touched(name) == seen[name] and self._holder(name).get("task") == task:
                    self._file(name).unlink(missing_ok=True)

    def _touched(self, name: str) -> float | None:
        try:
            return self._file(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def _holder(self, name: str) -> dict[str, Any]:
        """What the lock says; nothing where there is none."""
        try:
            found: dict[str, Any] = json.loads(self._file(name).read_text() or "{}")
        except FileNotFoundError:
            return {}
        return found

    def _take(self, name: str, task: str = "") -> bool:
        # Guarded, because between finding a lock stale and removing it another process could have taken it anew.
        with self.guard():
            if self.living(name):
                return False
            self._file(name).unlink(missing_ok=True)
            handle = os.open(self._file(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            with os.fdopen(handle, "w") as file:
                holder = {"host": platform.node(), "pid": os.getpid(), "process": _process(), "task": task}
                file.write(json.dumps(holder))
            return True

    def _beat(self, name: str, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.lock"


def _process(pid: int | None = None) -> str | None:
    """What tells process ``pid`` (by default this one) from others, also from later ones of that number; None: gone."""
    pid = os.getpid() if pid is None else pid
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return f"{pid}"  # No /proc here: the number has to do.
    return None if state == "Z" else f"{pid} since {fields[18]}"
