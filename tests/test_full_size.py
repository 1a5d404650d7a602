"""The benchmark at reduced size on the CPU: every combination gives a row, and so does memory that runs out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import full_size
import pytest
import torch


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    more = ["--set", "inner_store=host", "--channels-last"]
    full_size.main(["--batches", "1", "--rounds", "1", "--device", "cpu", "--out", str(out), *more])
    assert "inner_store=host, kernels channels last" in out.read_text()
    assert capsys.readouterr().out == out.read_text()
    assert "REDUCED SIZE" in out.read_text()
    rows = [line.split(" | ") for line in out.read_text().splitlines() if line.startswith("| sd")]
    assert len(rows) == 2 * 2 * 4
    assert all(float(row[5]) > 0 for row in rows)


def test_memory_that_runs_out_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(full_size, "run_of", full)
    row = next(full_size.table(["sd14"], [1], ["plain ESD"], 1, "cpu"))
    assert "out of memory" in row.text()


def test_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    full_size.main(["--generate", "1", "--device", "cpu", "--set", "precision=float32"])
    assert "1 pictures of 32 pixels, 2 steps" in capsys.readouterr().out


def test_a_gpus_memory_is_not_held_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        full_size.main(["--memory", "24", "--device", "cpu"])
    assert "--memory 24 holds a GPU's memory, and there is none with --device cpu" in capsys.readouterr().err


def test_memory_is_held_to_a_part_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int | None]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *held: asked.append(held))
    full_size.hold_to(20, torch.device("cuda"))
    full_size.hold_to(160, torch.device("cuda:1"))
    assert asked == [(0.25, None), (1.0, 1)]
