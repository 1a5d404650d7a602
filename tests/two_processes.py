"""What each of the two processes in test_processes.py runs: the command lines in a file, one after the other.

A launcher starts it as ``two_processes.py CALLS``; CALLS holds a JSON list of argument lists. First the processes try
whether they notice different weights. The run "broken" is broken off at its fourth step and resumed, the run "sharded
adamw" says what each process holds; in the last call process 1 is killed as it begins its third step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import break_at_the_fourth_step
from metaunlearn.cli import main
from metaunlearn.errors import RunError
from metaunlearn.meta.inner import InnerLoop, Trajectory
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Loss, Params
from metaunlearn.processes import join
from metaunlearn.shards import own


def die_at_the_third_step(out: Path) -> None:
    """From now on, once the other process has written down in ``out`` what both had after the second."""
    take_step, state = Algorithm1.take_step, out / "state" / "training.safetensors"

    def mortal(self: Algorithm1) -> dict[str, Any]:
        if self.step == 2 and self.processes.number == 1:
            deadline = time.monotonic() + 60
            while not state.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
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


def say_what_is_held(patch: pytest.MonkeyPatch) -> None:
    """After the second step, on stderr: bytes in this process, and in all."""
    take_step, run, found = Algorithm1.take_step, InnerLoop.run, {}

    def counted(what: str, tensors: Iterable[Tensor]) -> None:
        pieces = [x for x in tensors if x.dim()]
        # Of a piece its whole storage: a view of a larger tensor would keep all of it.
        found[what] = sum(own(x).untyped_storage().nbytes() for x in pieces)
        found[f"all of {what}"] = sum(x.numel() * x.element_size() for x in pieces)

    def running(self: InnerLoop, theta: Params, losses: Sequence[Loss], **options: bool) -> Trajectory:
        path = run(self, theta, losses, **options)
        counted("path", [x for m in range(len(path.thetas)) for x in path.thetas[m].values()])
        return path

    def stepping(self: Algorithm1) -> dict[str, Any]:
        record = take_step(self)
        counted("theta", self.theta.values())
        counted("denoiser", self.model._shards.held.values())  # type: ignore[attr-defined]
        counted("moments", [x for slots in self.optimizer.state.values() for x in slots.values()])
        if self.step == 2:
            print(f"held: {json.dumps(found)}", file=sys.stderr, flush=True)
        return record

    patch.setattr(Algorithm1, "take_step", stepping)
    patch.setattr(InnerLoop, "run", running)


notice_different_weights()
calls = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
for number, arguments in enumerate(calls):
    if number == len(calls) - 1:
        die_at_the_third_step(Path(arguments[-1]))
    with pytest.MonkeyPatch.context() as patch:
        if arguments[-1].endswith("sharded adamw"):
            say_what_is_held(patch)
        if arguments[-1].endswith("broken"):
            break_at_the_fourth_step(patch)
        code = main(arguments)
    if arguments[-1].endswith("broken"):
        code = main([*arguments, "--resume"])
    if code == 1:
        sys.exit(code)
