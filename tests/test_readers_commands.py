"""Commands of the pages that take a model and pictures of the reader's own, run in their order on stand-ins.

The stand-ins are tiny and have the names that the pages say. Erasing takes two steps, grids are counted only, and there
is no GPU; all else is as it is written. Slow: ``make docs-check``; blocks of Python, of README and index, are quick.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import metaunlearn
from attack_fixtures import write_pictures
from conftest import Call
from fenced import BLOCK, ROOT, commands
from metaunlearn.generation import Sampling, write_sampling
from tiny_judges import save_clip
from tiny_models import NEW

FAST = ("steps=2", "forget_images=4", "retain_images=4", "bank_trajectories=3", "bank_steps=4", "batch_size=4")


def model(family: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        NEW[family]().save_pretrained(folder, safe_serialization=True)
        write_sampling(folder, Sampling(steps=2, guidance_scale=2.0))

    return save


STAND_INS: dict[str, Callable[[Path], object]] = {
    "my-model": model("sd1"),
    "my-sdxl": model("sdxl"),
    "gun-photos": write_pictures,
    "prompts.txt": lambda file: file.write_text("a gun on a table\n"),
    "openai/clip-vit-base-patch32": save_clip,
}
LEFT_OUT = re.compile("demo$|--report$|--base canvas|nudity:")
"""make demo runs the first; test_tune.py has the whole search that the second is a report of; the third wants a model
that was erased from Canvas, and the fourth NudeNet's detector: test_unlearndiffatk.py has both."""
PAGES = (
    "README.md",
    "docs/attacks.md",
    *(f"docs/guides/{guide}.md" for guide in ("attack", "frontier", "sdxl", "table1")),
)
ERASED = ["metaunlearn erase my-model --concept 'a gun' --out runs/erased"]
FIRST = {"docs/guides/attack.md": ERASED, "docs/attacks.md": ERASED}
"""What a page takes as done."""


@pytest.mark.skipif("DOCS_CHECK" not in os.environ, reason="slow: make docs-check")
@pytest.mark.parametrize("page", PAGES)
def test_slow_commands_work_on_stand_ins(
    page: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = [command.line for command in commands("") if command.page == page]
    lines = [line for line in [*FIRST.get(page, []), *written] if line.startswith("metaunlearn ")]
    for name, make in STAND_INS.items():
        if any(name in shlex.split(line) for line in lines):
            Path(name).parent.mkdir(exist_ok=True)
            make(Path(name))
    done = [(line, call(*in_little(shlex.split(line)[1:]))) for line in lines if not LEFT_OUT.search(line)]
    assert [(line, outcome.err) for line, outcome in done if outcome.code != 0] == []
    assert len(done) >= 3


def in_little(words: list[str]) -> list[str]:
    """The command with fewer steps, without a GPU, and of a grid how long it would take."""
    here = [("cpu" if before == "--device" else word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "erase":
        return [*here, *(word for setting in FAST for word in ("--set", setting))]
    return [*here, "--dry-run"] if words[0] in ("bench", "tune") and "--dry-run" not in words else here


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_python_blocks_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, on Canvas as they say; erasing takes two steps."""
    blocks = [code for language, code in BLOCK.findall((ROOT / page).read_text()) if language == "python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metaunlearn, "erase", partial(metaunlearn.erase, overrides=FAST))
    names: dict[str, Any] = {}
    for code in blocks:
        exec(code, names)
    assert names["images"].shape[:2] == (8, 3)
    assert page != "README.md" or (tmp_path / "canvas-without-knife" / "model_index.json").exists()
