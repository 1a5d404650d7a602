"""What each of the two processes in test_processes.py runs: the command lines in a file, one after the other.

A launcher starts it as ``two_processes.py CALLS``; CALLS holds a JSON list of argument lists. First the processes try
whether they notice different weights; in the last call process 1 is killed as it begins its third step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from metaunlearn.cli import main
from metaunlearn.errors import RunError
from metaunlearn.meta.train import Algorithm1
from metaunlearn.processes import join


def die_at_the_third_step() -> None:
    """From now on."""
    take_step = Algorithm1.take_step

    def mortal(self: Algorithm1) -> dict[str, Any]:
        if self.step == 2 and self.processes.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(self)

    Algorithm1.take_step = mortal  # type: ignore[method-assign]


def notice_different_weights() -> None:
    """Say on stderr what is said of them."""
    processes = join("cpu")
    processes.check_same({"w": torch.ones(3)}, 6)
    try:
        processes.check_same({"w": torch.ones(3), "b": torch.full((2,), 1 + processes.number * 1e-7)}, 7)
    except RunError as error:
        print(f"noticed by {processes.number}: {error}", file=sys.stderr)


notice_different_weights()
calls = json.loads(Path(sys.argv[1]).read_text())
for number, arguments in enumerate(calls):
    if number == len(calls) - 1:
        die_at_the_third_step()
    code = main(arguments)
    if code == 1:
        sys.exit(code)
