"""Everything that the command line prints.

Results go to stdout; progress, the package's own log and errors go to stderr. With ``--json`` stdout carries one JSON
object and nothing else, whatever a library prints.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from metaunlearn.cli import launching
from metaunlearn.cli.errors import WRONG_CALL

if TYPE_CHECKING:
    import rich.progress

    from metaunlearn.cli.errors import Failure
    from metaunlearn.runs import Count, Progress

SECONDS_BETWEEN_LINES = 15.0
"""Where stderr is no terminal, progress is a plain line this often."""


class Console:
    """What a running command may say, and its result."""

    def __init__(self, stdout: TextIO, progress: Progress | None, *, as_json: bool) -> None:
        self._stdout = stdout
        self._as_json = as_json
        self.progress = progress
        """For the library's functions; None: silent."""

    def pictures(self, label: str) -> Count | None:
        """The same for functions that report (done, total) without a label."""
        from metaunlearn.runs import labelled

        return labelled(self.progress, label)

    def result(self, summary: Mapping[str, Any], *lines: str) -> None:
        """The end of a command: ``summary`` with ``--json``, else ``lines``; of several processes the main one's."""
        if launching.number() != 0:
            return
        text = json.dumps(summary, ensure_ascii=False, default=str) if self._as_json else "\n".join(lines)
        print(text, file=self._stdout)


@contextlib.contextmanager
def working(*, as_json: bool, shared: bool = False) -> Iterator[Console]:
    """Around a command's work: progress on stderr, the package's log as notes, stdout kept for the result.

    ``shared``: several processes may do it together; then the main one alone says anything.
    """
    if not shared:
        launching.check_alone()
    stdout = sys.stdout
    progress: Progress | None = None
    note = _plain_note
    with contextlib.ExitStack() as stack:
        if launching.number() != 0:
            note = _silent
        elif as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        elif sys.stderr.isatty():
            bars = stack.enter_context(_Bars())
            progress, note = bars, bars.note
        else:
            progress = _Lines()
        stack.enter_context(_log_to(note))
        yield Console(stdout, progress, as_json=as_json)


def print_failure(failure: Failure, *, as_json: bool) -> None:
    """An error as text on stderr, and with ``--json`` as the one object on stdout, too."""
    who = f" (process {launching.number()} of {launching.count()})" if launching.count() > 1 else ""
    if failure.exit_code != WRONG_CALL or launching.first_here():
        print(f"metaunlearn{who}: {failure.message}", file=sys.stderr, flush=True)
    if as_json and launching.number() == 0:
        print(json.dumps({"error": failure.message, "exit_code": failure.exit_code}, ensure_ascii=False))


class _Bars:
    """One bar for each label, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=RichConsole(stderr=True),
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> _Bars:
        self._display.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._display.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._display.add_task(label, total=total)
        task = self._tasks[label]
        if self._display.tasks[self._display.task_ids.index(task)].completed > done:  # The same again, from the start.
            self._display.reset(task)
        self._display.update(task, completed=done, total=total)

    def note(self, text: str) -> None:
        self._display.console.print(text, markup=False, highlight=False)


class _Lines:
    """A plain line now and then, and one when a label is done."""

    def __init__(self) -> None:
        self._printed = time.monotonic()

    def __call__(self, label: str, done: int, total: int) -> None:
        if done >= total or time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            _plain_note(f"{label}: {done}/{total}")


def _plain_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass


class _Notes(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._note(prefix + record.getMessage())


@contextlib.contextmanager
def _log_to(note: Callable[[str], None]) -> Iterator[None]:
    """The package's own log lines as notes; other libraries keep theirs."""
    logger = logging.getLogger("metaunlearn")
    handler, level, propagate = _Notes(note), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
