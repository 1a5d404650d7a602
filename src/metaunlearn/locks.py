"""One maker a cell: lock files that hold while their process lives.

A lock is a file that only one process can create; it names its host and process, and a thread touches it while the
work goes on. A lock is stale, and may be broken, when its process is gone (same host) or when nothing has touched it
for ``SILENCE`` seconds (another host, on a shared file system). Who gave the work away and is told that its maker is
lost need not wait so long: the lock bears the name of the task, and ``drop`` breaks it. A holder that was silent for so
long, and lives, finds another's token in the lock: it has lost it, and leaves it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HEARTBEAT = 10.0
"""Seconds between two touches."""
SILENCE = 300.0
"""Seconds after which a lock of another host counts as stale."""
ENDING = ".lock"


class Locks:
    """The locks of one output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokens: dict[str, str] = {}
        """Of the locks that are held through this object: what tells each from any other of its name."""

    @contextlib.contextmanager
    def held(self, name: str, task: str = "", needs: Iterable[str] = ()) -> Iterator[bool]:
        """Hold the lock ``name`` in the body, for ``task`` if somebody gave that away; yields False, and holds nothing,
        when a living process has it. ``needs`` are in use as long (:meth:`needed`)."""
        token = self._take(name, task, needs)
        if token is None:
            yield False
            return
        self._tokens[name] = token
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(name, token, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            del self._tokens[name]
            self._release(name, token)

    def owned(self, name: str) -> bool:
        """Whether the lock ``name``, taken by :meth:`held`, is still this object's: it was not broken meanwhile."""
        return name in self._tokens and self._holder(name).get("token") == self._tokens[name]

    def needed(self) -> set[str]:
        """What the holders of living locks said that they need."""
        names = [file.name.removesuffix(ENDING) for file in self.folder.glob(f"*{ENDING}")]
        return {need for name in names if self.living(name) for need in self._holder(name).get("needs", ())}

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Alone among the processes that use this folder, for moments only: the system frees it when one dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "guard").open("w", encoding="utf-8") as handle:
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
        """What the lock says; nothing where there is none, or where another process is just writing it."""
        try:
            found: dict[str, Any] = json.loads(self._file(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def _take(self, name: str, task: str = "", needs: Iterable[str] = ()) -> str | None:
        """The token of the lock, which is ours now; None when a living process has it."""
        # Guarded, because between finding a lock stale and removing it another process could have taken it anew.
        with self.guard():
            if self.living(name):
                return None
            self._file(name).unlink(missing_ok=True)
            handle = os.open(self._file(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            holder = {
                "host": platform.node(), "pid": os.getpid(), "process": _process(), "task": task,
                "token": uuid.uuid4().hex, "needs": list(needs),
            }  # fmt: skip
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(holder))
            return str(holder["token"])

    def _release(self, name: str, token: str) -> None:
        with self.guard():
            if self._holder(name).get("token") == token:
                self._file(name).unlink(missing_ok=True)

    def _beat(self, name: str, token: str, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT):
            with contextlib.suppress(FileNotFoundError):
                if self._holder(name).get("token") == token:
                    os.utime(self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{ENDING}"


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
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return f"{pid}"  # No /proc here: the number has to do.
    return None if state == "Z" else f"{pid} since {fields[18]}"
