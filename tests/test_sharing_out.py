"""What processes share out, wait for and refuse: four of them at a time, and without any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import Call
from forked_runs import start
from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError
from metaunlearn.meta.together import check_sharded, check_shares
from metaunlearn.parameters import Params
from metaunlearn.processes import ALONE, Processes, join
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

TWO = [Processes(number=number, count=2) for number in (0, 1)]

FOUR = """
import sys, time
from pathlib import Path
from torch import distributed as dist
from metaunlearn.errors import RunError
from metaunlearn.processes import Processes

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=rank, world_size=4)
four = Processes(number=rank, count=4)
four.wait()
if rank == 3:
    time.sleep(1)
(folder / f"came {rank}").write_text(str(time.time()))
four.wait()
(folder / f"left {rank}").write_text(str(time.time()))
four.wait()
if rank != 3:
    try:
        four.wait()
    except RunError as error:
        (folder / f"told {rank}").write_text(str(error))
"""


ONE_IS_FULL = """
import sys
from pathlib import Path
import torch
from torch import distributed as dist
from metaunlearn.meta.hypergradient import DoubleBackward
from metaunlearn.processes import Processes
from toy_denoiser import toy_run, toy_settings

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder / 'met'}", rank=rank, world_size=4)
exact, tries = DoubleBackward.__call__, []

def mostly(self, problem, theta):
    tries.append(len(tries))
    found = exact(self, problem, theta)
    if rank == 1 and len(tries) == 3:  # the last of its probes
        raise torch.OutOfMemoryError("full")
    return found

DoubleBackward.__call__ = mostly
run = toy_run(toy_settings("batch_size=16", "meta_gradient=auto"), processes=Processes(number=rank, count=4))
run.take_step()
(folder / f"took {rank}").write_text(f"{len(tries)} tries: {run.mode()}")
"""


def four(script: str, folder: Path) -> None:
    """Run Python code in four processes, to its end."""
    processes = [start(script, folder, rank) for rank in range(4)]
    for process in processes:
        process.join(120)
        process.kill()


def test_processes_of_which_one_is_out_of_memory_go_on_together(tmp_path: Path) -> None:
    """In its check of the meta-gradient, while the others are through with theirs."""
    four(ONE_IS_FULL, tmp_path)
    [took] = {(tmp_path / f"took {rank}").read_text() for rank in range(4)}
    assert took.startswith("6 tries: GradientDifference")


def test_four_processes_wait_for_each_other(tmp_path: Path) -> None:
    """None leaves before the last has come, and none waits for one that has ended."""
    four(FOUR, tmp_path)
    came, left = ([float((tmp_path / f"{what} {rank}").read_text()) for rank in range(4)] for what in ("came", "left"))
    assert min(left) >= max(came) == came[3]
    for rank in range(3):
        assert "another process of this run died" in (tmp_path / f"told {rank}").read_text()


def test_alone_everything_stays_as_it_is() -> None:
    a: Params = {"w": torch.ones(2)}
    assert ALONE.average(a) is a
    assert ALONE.own(5) == slice(0, 5)
    assert ALONE.of_others(lambda: 1) == []

    def loss(theta: Params) -> torch.Tensor:
        return theta["w"].sum()

    assert ALONE.shared(loss) is loss


def test_what_lies_on_the_host_is_sent_by_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate connects cards by nccl alone, which takes no tensor of the host: an attack's loss is one."""
    sent = []
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "all_reduce", lambda x, op=None: sent.append(x.device.type))
    with FakeTensorMode():
        averaged = TWO[0].average({"loss": torch.tensor(1.0, dtype=torch.float64), "numbers": torch.ones(2)})
    assert sent == ["cuda", "cuda"]
    assert {x.device.type for x in averaged.values()} == {"cpu"}


def test_rows_and_turns_are_shared_out() -> None:
    assert [processes.own(6) for processes in TWO] == [slice(0, 3), slice(3, 6)]
    assert [list(processes.turns(5)) for processes in TWO] == [[0, 2, 4], [1, 3]]
    assert TWO[1].device("cpu") == "cpu"
    with pytest.raises(UserError, match="without a number"):
        TWO[1].device("cuda:0")


def test_kinds_with_weights_of_their_own_must_be_shared_evenly() -> None:
    """Batches of 2 hold one related and one unrelated picture: each process would have one kind's mean only."""
    base = {"steps": 1, "learning_rate": 1, "gamma2": 1, "retain_weight": 1, "inner_steps": 1, "inner_learning_rate": 1}
    pictures = {"forget_images": 1, "retain_images": 1, "bank_trajectories": 1, "bank_steps": 1}
    settings = EraseSettings(**base, **pictures, batch_size=2)
    check_shares(settings, TWO[0], meta=True)
    weighted = settings.model_copy(update={"retain_related": 1.0, "retain_unrelated": 0.5})
    check_shares(weighted, ALONE, meta=True)
    with pytest.raises(UserError, match="batch_size"):
        check_shares(weighted, TWO[0], meta=True)


@pytest.mark.parametrize(
    "setting",
    ["teacher_precision=bf16", "outer_optimizer=adamw-8bit", "inner_store=host", "diagnostics_exact=double-backward"],
)
def test_what_shards_cannot_do_is_refused(setting: str) -> None:
    settings = resolve(EraseSettings, read_recipe("small").erase, [setting])
    with pytest.raises(UserError, match=setting.split("=")[0]):
        check_sharded(settings, meta=True)


def test_methods_with_a_defence_are_not_shared_out() -> None:
    with pytest.raises(UserError, match="defence of its own"):
        check_sharded(EraseSettings.model_validate(read_recipe("small").erase), meta=False, defended=True)


def test_commands_of_one_process_say_so(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    found = call("report", tmp_path)
    assert found.code == 2
    assert "runs in one process, and 2 were started" in found.err


def test_a_launcher_of_one_process_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level("INFO", logger="metaunlearn"):
        assert join("cpu") is ALONE
        assert caplog.text == ""
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        assert join("cpu") is ALONE
    assert "accelerate started one process" in caplog.text


def test_what_does_not_divide_cannot_be_shared_evenly() -> None:
    two = Processes(number=1, count=2, local=1)
    two.check_divides(4, "batches")
    for rows in (1, 3):
        with pytest.raises(UserError, match=f"2 processes cannot share batches of {rows} evenly"):
            two.check_divides(rows, "batches")


@pytest.mark.parametrize(("together", "made"), [(False, [[0, 2, 4], [1, 3]]), (True, [[0, 2, 4], [1, 3, 4]])])
def test_each_piece_comes_from_the_process_whose_turn_it_was(
    monkeypatch: pytest.MonkeyPatch, together: bool, made: list[list[int]]
) -> None:
    """Of a sharded model all processes make as many, the last piece once more where one would have fewer."""
    sent: list[tuple[int | None, int]] = []

    def broadcast(self: Processes, tensors: dict[str, Tensor] | None, source: int = 0) -> dict[str, Any]:
        sent.append((None if tensors is None else int(tensors["x"]), source))
        return tensors or {}

    monkeypatch.setattr(Processes, "broadcast", broadcast)
    for number in range(2):
        asked: list[int] = []

        def make(index: int, asked: list[int] = asked) -> dict[str, Tensor]:
            asked.append(index)
            return {"x": torch.tensor(index)}

        sent.clear()
        Processes(number=number, count=2, local=number).each(5, make, together=together)
        assert asked == made[number]
        assert sent == [(index if index % 2 == number else None, index % 2) for index in range(5)]
