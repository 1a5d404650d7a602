"""Run folders: what was asked, what happened step by step, and whether the folder may be written to."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from metaunlearn.asked import asked_differently, in_words
from metaunlearn.errors import UserError
from metaunlearn.files import partials_of, read_json, write_atomic, write_json
from metaunlearn.folder_lock import locked
from metaunlearn.processes import ALONE, Processes
from metaunlearn.records import RUN_FILE
from metaunlearn.tracking import Trackers, tracking

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a label, how much is done, and how much there is."""
Count = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""


def labelled(progress: Progress | None, label: str) -> Count | None:
    """``progress`` for work that says no label itself."""
    return None if progress is None else lambda done, total: progress(label, done, total)


LOG_FILE = "log.jsonl"
RESULTS_FILE = "results.json"
STATE_FOLDER = "state"
"""Resumable training state; removed when the run is complete."""

BEAT = 5.0
"""Seconds between two notes, in ``run.json``, of how long a run has taken: what a kill may lose of its wall time."""

_PACKAGES = ("metaunlearn", "torch", "diffusers", "transformers", "safetensors")


def package_version(name: str) -> str | None:
    """The version of an installed package; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = {name: package_version(name) or "not installed" for name in _PACKAGES}
    return {"python": platform.python_version()} | packages


def named(model: Any) -> str:
    """What ``run.json`` calls a model that was given by its name, or as a pipeline."""
    return str(model) if isinstance(model, str | Path) else type(model).__name__


def short_name(model: Any) -> str:
    """The same without the path of somebody's machine: a hub id as it is, of a folder or file that is here its name."""
    name = named(model)
    is_path = Path(name).exists() or name.startswith(("/", ".", "~"))
    return Path(name).resolve().name if is_path else name


class NotThisRunError(UserError):
    """What lies in a folder is no run, or one that was asked for differently: it cannot go on."""


class RunFolder:
    """A result folder being filled: ``run.json`` is written first (status ``running``) and again at the end."""

    def __init__(self, path: Path, request: dict[str, Any], processes: Processes = ALONE) -> None:
        self.processes = processes
        self.path = path
        self.request = request
        self.complete_before = False
        """Whether an earlier run finished here, so that nothing is left to do."""
        self._seconds_before = 0.0
        self._peak_before = 0
        self._began = time.monotonic()
        self._noted = 0.0
        self._trackers = Trackers()
        self._lock: int | None = None
        """The folder's own descriptor, locked while this run is at work; the system frees it when the process dies."""
        self._made = False
        """Whether the folder was not there before."""
        self._finished = False

    @classmethod
    def open(
        cls,
        path: Path,
        request: Mapping[str, Any],
        *,
        resume: bool,
        processes: Processes = ALONE,
        alone: bool = False,
    ) -> RunFolder:
        """Claim ``path`` for the run that ``request`` describes; of several ``processes``, the main one does.

        ``alone``: the run is one process's, as no shards' is, so another one's is refused with a UserError; its work is
        done within :meth:`alone`.

        Raises UserError when the folder holds a run and ``resume`` is off, NotThisRunError when it holds something else
        or a run that was asked for differently.
        """
        wanted = json.loads(json.dumps(request))
        if not processes.main:
            watched = _OthersRunFolder(path, wanted, processes)
            watched.complete_before = processes.on_main(lambda: False)
            return watched
        folder = cls(path, wanted, processes)
        processes.on_main(lambda: folder._claim(resume, alone=alone))
        return folder

    def _claim(self, resume: bool, *, alone: bool) -> bool:
        """Returns ``complete_before``."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise UserError(f"the output {path} is a file; give a folder (out=..., --out DIR).")
        self._made = not path.exists()
        if alone:  # Before anything is read: who ends just now must have said so.
            path.mkdir(parents=True, exist_ok=True)
            self._lock = locked(path)
        try:
            return self._claimed(resume)
        except BaseException:
            self._unlock()
            raise

    def _claimed(self, resume: bool) -> bool:
        path = self.path
        # Another shard may be opening the folder right now: its run.json while it is written is nobody's content.
        if path.is_dir() and {*path.iterdir()} - {*partials_of(path / RUN_FILE)}:
            self._adopt(resume)
        if resume and self._made and self._lock is not None:
            logger.info("there is no run in %s to go on with: it begins", path)
        if not self.complete_before:
            path.mkdir(parents=True, exist_ok=True)
            self._write("running")
        else:
            self._unlock()
        return self.complete_before

    def _adopt(self, resume: bool) -> None:
        file = self.path / RUN_FILE
        if not file.is_file():
            raise NotThisRunError(
                f"the output folder {self.path} is not empty and holds no run of metaunlearn; "
                "choose another (out=..., --out DIR)."
            )
        earlier = read_json(file, otherwise=f"Choose another folder (out=..., --out DIR), or delete {self.path}.")
        if not (isinstance(earlier, dict) and isinstance(earlier.get("request", {}), dict)):
            raise UserError(
                f"{file} is no record of a run: expected an object with a request. Choose another folder "
                "(out=..., --out DIR)."
            )
        if not resume:
            raise UserError(
                f"the output folder {self.path} holds a run already (status {earlier.get('status')}); "
                "go on with it (resume=True, --resume) or choose another (out=..., --out DIR)."
            )
        before = earlier.get("request", {})
        if asked_differently(before, self.request):
            raise NotThisRunError(
                f"the run in {self.path} was asked for differently {in_words(before, self.request)}. "
                "Resume it with the same options, or choose another folder (out=..., --out DIR)."
            )
        self._seconds_before = float(earlier.get("seconds", 0.0))
        self._peak_before = int(earlier.get("peak_memory_bytes", 0))
        self.complete_before = earlier.get("status") == "complete"
        threads = earlier.get("threads", torch.get_num_threads())
        if not self.complete_before and threads != torch.get_num_threads():
            logger.warning(
                "the run in %s began with %s threads and goes on with %s: sums in another order, so not the same bits "
                "(OMP_NUM_THREADS=%s would)", self.path, threads, torch.get_num_threads(), threads,
            )  # fmt: skip

    @property
    def state(self) -> Path:
        """Where the run keeps what it needs to go on after it was killed."""
        return self.path / STATE_FOLDER

    @property
    def complete(self) -> bool:
        """Whether the run is complete by now; where shards share a folder, another may have completed it."""
        return read_json(self.path / RUN_FILE)["status"] == "complete"

    def summary(self) -> dict[str, Any]:
        """What ``run.json`` holds of a complete run, without the request."""
        record = read_json(self.path / RUN_FILE)
        return {key: value for key, value in record.items() if key not in {"request", "versions", "threads", "status"}}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Around all work on a run that was opened as one process's: afterwards another may go on with it.

        A run that breaks down by itself says so in ``run.json``, and leaves nothing where it had done nothing. A folder
        that could not be locked is left as it is: another process may be at work in it by then.
        """
        if self._lock is not None:
            for partial in partials_of(self.path / RUN_FILE):  # Of processes that were killed.
                partial.unlink(missing_ok=True)
        try:
            yield
        except KeyboardInterrupt:
            self._ended("interrupted")
            raise
        except Exception as error:
            self._failed(str(error) or type(error).__name__)
            raise
        finally:
            self._unlock()

    def _failed(self, why: str) -> None:
        # Of several processes another one may be writing still.
        if self._finished or self._lock is None or self.processes.count > 1 or self._holds_work():
            self._ended("failed", error=why)
            return
        with contextlib.suppress(OSError):  # What went wrong first is told.
            shutil.rmtree(self.state, ignore_errors=True)
            (self.path / RUN_FILE).unlink()
            if self._made:
                self.path.rmdir()

    def _ended(self, status: str, **why: Any) -> None:
        if self._lock is not None and not self._finished:
            with contextlib.suppress(OSError):
                self._write(status, **why)

    def _holds_work(self) -> bool:
        files = (entry for entry in self.path.rglob("*") if not entry.is_dir() or entry.is_symlink())
        return any(file != self.path / RUN_FILE for file in files)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl`` and flush it; within :meth:`tracked`, tell the trackers as well."""
        with (self.path / LOG_FILE).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        self._trackers.log(record)
        self.beat()

    @contextlib.contextmanager
    def tracked(self, names: Sequence[str]) -> Iterator[None]:
        """Around a run's work: what is logged goes to the trackers ``names`` as well."""
        file = self.path / LOG_FILE
        steps = [_step_of(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        last = max((step for step in steps if math.isfinite(step)), default=-1)
        with tracking(names, self.path, self.request, last) as self._trackers:
            yield

    def beat(self) -> None:
        """Note in ``run.json``, every ``BEAT`` seconds, how long the run has taken: a kill leaves no time to do so."""
        if self.seconds() - self._noted >= BEAT:
            self._write("running")

    def watched(self, progress: Callable[..., None] | None) -> Callable[..., None]:
        """``progress``, if there is one, with a :meth:`beat` at every call: for work that logs nothing."""

        def watch(*arguments: Any) -> None:
            self.beat()
            if progress is not None:
                progress(*arguments)

        return watch

    def truncate_log(self, step: int) -> None:
        """Forget the lines of steps after ``step``: a resumed run takes them again."""
        if (self.path / LOG_FILE).exists():
            write_atomic(self.path / LOG_FILE, self._log_until(step))

    def _log_until(self, step: int) -> str:
        file = self.path / LOG_FILE
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return "".join(line + "\n" for line in lines if _step_of(line) <= step)

    def describe(self, part: Path, *, step: int) -> None:
        """Give ``part``, this run's result after ``step`` steps, a ``run.json`` and a ``log.jsonl`` of its own."""
        write_atomic(part / LOG_FILE, self._log_until(step))
        write_json(
            part / RUN_FILE, {"status": "complete", "request": self.request, "versions": versions(), "step": step}
        )

    def finish(self, **results: Any) -> None:
        """Write the final ``run.json`` and drop the resumable state; all processes wait for it."""
        self._write("complete", **results)
        self._finished = True
        shutil.rmtree(self.state, ignore_errors=True)
        self.processes.wait()

    def seconds(self) -> float:
        """Wall time of this run, earlier parts of it included."""
        return self._seconds_before + time.monotonic() - self._began

    def _write(self, status: str, **results: Any) -> None:
        self._noted = self.seconds()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        record = {
            "status": status,
            "request": self.request,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "seconds": round(self._noted, 3),
            "peak_memory_bytes": max(peak, self._peak_before),
            **results,
        }
        write_json(self.path / RUN_FILE, record)


class _OthersRunFolder(RunFolder):
    """A run's folder as the processes beside the main one have it: they read what is there, and write nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """The main process does."""

    def beat(self) -> None:
        """The main process does."""

    def truncate_log(self, step: int) -> None:
        """The main process does."""

    def describe(self, part: Path, *, step: int) -> None:
        """The main process does."""

    @contextlib.contextmanager
    def tracked(self, names: Sequence[str]) -> Iterator[None]:
        """The main process does."""
        yield

    def finish(self, **results: Any) -> None:
        """Until the main process has."""
        self.processes.wait()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line).get("step", -1))
    except ValueError:
        return float("inf")  # A line that was cut off by a kill.
