"""The benchmark at reduced size on the CPU: every combination gives a row, and so does memory that runs out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "full_size.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_size"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_table(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    more = ["--set", "inner_store=host", "--channels-last"]
    benchmark.main(["--batches", "1", "--rounds", "1", "--device", "cpu", "--out", str(out), *more])
    assert "inner_store=host, kernels channels last" in out.read_text()
    assert capsys.readouterr().out == out.read_text()
    assert "REDUCED SIZE" in out.read_text()
    rows = [line.split(" | ") for line in out.read_text().splitlines() if line.startswith("| sd")]
    assert len(rows) == 2 * 2 * 4
    assert all(float(row[5]) > 0 for row in rows)


def test_memory_that_runs_out_is_a_row(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(benchmark, "run_of", full)
    row = next(benchmark.table(["sd14"], [1], ["plain ESD"], 1, "cpu"))
    assert "out of memory" in row.text()


def test_pictures(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--generate", "1", "--device", "cpu", "--set", "precision=float32"])
    assert "1 pictures of 32 pixels, 2 steps" in capsys.readouterr().out
