"""The benchmarks, which no other test runs: that each can be started, and the loop that ours is compared with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
NEED_MORE = {"rivals"}
"""Those that import what only the extra ``rivals`` brings."""


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import each other by name, as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", sorted({script.stem for script in FOLDER.glob("*.py")} - NEED_MORE))
def test_it_can_be_started(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "main"):
        return
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.usefixtures("importable")
def test_a_step_of_the_official_codes_loop_moves_only_what_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    official = importlib.import_module("official_loop")
    monkeypatch.setattr(official, "PICTURES", 2)
    loop = official.OfficialLoop("knife", official.pictures("knife"))
    before = {name: p.detach().clone() for name, p in loop.student.named_parameters()}
    loop.step()
    moved = {name for name, p in loop.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(loop.trained)
    assert all(torch.equal(loop.teacher.get_parameter(name), p) for name, p in before.items())
