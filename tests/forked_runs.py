"""Python code in a process of its own: to be killed in the middle, or to run beside another.

Each such process is a fork of one that has imported what runs import and done nothing else: an import for each would
take most of the time of the tests that want one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

import metaunlearn

IMPORTED = ["tiny_models", "metaunlearn.attacking", "metaunlearn.bench.run", "metaunlearn.erasing"]
SOURCES = [str(Path(__file__).parent), str(Path(metaunlearn.__file__).parents[1])]


def start(script: str, *arguments: object) -> ForkServerProcess:
    """Run Python code with this very package; ``arguments`` are its ``sys.argv[1:]``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_execute, args=(script, [str(argument) for argument in arguments]))
    with pytest.MonkeyPatch.context() as patch:  # For the one to fork from, which the first call starts.
        patch.setenv("PYTHONPATH", os.pathsep.join(SOURCES))
        process.start()
    return process


def run_and_kill(script: str, *arguments: object, log: Path, lines: int) -> None:
    """Run Python code in another process, and SIGKILL it once ``log`` has so many lines.

    Raises:
        AssertionError: The code ended before that by itself, other than by SIGKILL.
    """
    process = start(script, *arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        if log.exists() and len(log.read_text(encoding="utf-8").splitlines()) >= lines:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


def _execute(script: str, arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere
        exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
