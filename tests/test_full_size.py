"""The benchmark at reduced size on the CPU: every combination gives a row, and so does memory that runs out."""

from __future__ import annotations

from pathlib import Path

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
