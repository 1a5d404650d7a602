"""The benchmarks, which no other test runs: that each can be started, and the loop that ours is compared with."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from bench_grids import keep_pictures, made_up

FOLDER = Path(__file__).parents[1] / "benchmarks"
NEED_MORE = {"rivals"}
"""Those that import what only the extra ``rivals`` brings."""


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


@pytest.mark.parametrize(
    "page", ["ablation-gradient.md", "adversarial-canvas.md", "table3-canvas.md", "table4-canvas.md"]
)
def test_pages_of_tables_are_those_of_the_committed_results(page: str) -> None:
    tables = importlib.import_module("tables")
    assert (tables.ROOT / "docs" / page).read_text() == tables.page_of(tables.PAGES[page])


def test_a_step_of_the_official_codes_loop_moves_only_what_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    official = importlib.import_module("official_loop")
    monkeypatch.setattr(official, "PICTURES", 2)
    loop = official.OfficialLoop("knife", official.pictures("knife"))
    before = {name: p.detach().clone() for name, p in loop.student.named_parameters()}
    loop.step()
    moved = {name for name, p in loop.student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(loop.trained)
    assert all(torch.equal(loop.teacher.get_parameter(name), p) for name, p in before.items())


def test_figures_have_a_row_for_each_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both pictures of both models, before and after the last step; what a prompt says is no markup."""
    results = made_up(tmp_path)
    keep_pictures(tmp_path, results, prompt="a <b>knife</b>")
    grid = tmp_path / "tiny"
    grid.mkdir()
    (grid / "results.json").write_text(json.dumps(results.found().to_dict()))
    page = tmp_path / "figures.md"
    monkeypatch.setattr(sys, "argv", ["figures", str(grid), "--out", str(page)])
    importlib.import_module("figures").main()
    assert "![knife: esd-x-1, seed 0](figures-tiny.svg)" in page.read_text()
    drawing = (tmp_path / "figures-tiny.svg").read_text()
    said = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert said == [
        "knife: esd-x-1, seed 0",
        *("unlearned", "before", "unlearned", "HRM-m, 2 steps"),
        *("meta-unlearned", "before", "meta-unlearned", "HRM-m, 2 steps"),
    ]
    assert drawing.count('href="data:image/webp;base64,') == 8
    assert "a &lt;b&gt;knife" in drawing
