"""Commands of the blocks that take a model and pictures of the reader's own, run page by page in order on stand-ins.

The stand-ins are tiny and have the names that the pages say. Erasing takes two steps, grids are counted only, two
processes stand for four, and there is no GPU; all else is as it is written. Slow: ``make docs-check``; blocks of
Python, of README and index, are quick.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import metaunlearn
from attack_fixtures import write_pictures
from conftest import Call, Outcome, process_environment
from fenced import BLOCK, ROOT, commands
from inception_weights import save_published, shapes, weights
from metaunlearn.converting import convert
from metaunlearn.exporting import export
from metaunlearn.generation import Sampling, write_sampling
from tiny_judges import head_tensors, save_classifier, save_clip
from tiny_models import NEW

FAST = ("steps=2", "forget_images=4", "retain_images=4", "bank_trajectories=3", "bank_steps=4", "batch_size=4")


def model(family: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        NEW[family]().save_pretrained(folder, safe_serialization=True)
        write_sampling(folder, Sampling(steps=2, guidance_scale=2.0))

    return save


def configuration(folder: Path) -> None:
    """What ``hf download`` fetches with these patterns: no weights."""
    model("sd1")(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def single_file(file: Path) -> None:
    folder = file.with_suffix("")
    model("sd1")(folder)
    export(folder, file)
    shutil.rmtree(folder)


def published(file: Path) -> None:
    save_published(file, weights(shapes()))


def inception(file: Path) -> None:
    pickle = file.with_suffix(".pth")
    published(pickle)
    convert("inception-fid", pickle, file, published=False)
    pickle.unlink()


def rows(*labels: tuple[str, str]) -> Callable[[Path], None]:
    """A prompts file: by UnlearnCanvas's protocol where there are labels and roles."""

    def write(file: Path) -> None:
        more = [{"label": label, "role": role} for label, role in labels] or [{}, {}]
        lines = [{"prompt": f"A Dogs image, {place}.", "seed": 188 + place, **row} for place, row in enumerate(more)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    return write


STAND_INS: dict[str, Callable[[Path], object]] = {
    "MODEL": model("sd1"),
    "my-model": model("sd1"),
    "my-sdxl": model("sdxl"),
    "model.safetensors": single_file,
    "sd15-config": configuration,
    **dict.fromkeys(("gun-photos", "runs/pictures", "real-photos", "coco/"), write_pictures),
    **dict.fromkeys((f"data/{name}" for name in ("hrm-m", "hrm-s", "clean", "coco")), write_pictures),
    "prompts.txt": lambda file: file.write_text("a gun on a table\n"),
    **dict.fromkeys(("i2p.jsonl", "coco.jsonl"), rows()),
    "styles.jsonl": rows(("Van_Gogh", "erased"), ("Van_Gogh", "erased"), ("Picasso", "in-domain")),
    "objects.jsonl": rows(*[("Dogs", "cross-domain")] * 3),
    "style-classifier": lambda folder: save_classifier(folder, ["Van_Gogh", "Picasso"]),
    "object-classifier": lambda folder: save_classifier(folder, ["Dogs", "Cats"]),
    "openai/clip-vit-base-patch32": save_clip,
    "inception.safetensors": inception,
    "pt_inception-2015-12-05-6726825d.pth": published,
    "clip_ViT-L-14_openai_binary_nsfw_head.pth": lambda file: torch.save(head_tensors(), file),
}
"""By the name that a page says, and what makes it; ``--use NAME=PATH`` and its like name it behind the sign."""
LEFT_OUT = re.compile(r"demo$|--report$|--base canvas|nudity:|^hf |^curl |data prompts coco-10k|SLURM_")
"""make demo runs the first; test_tune.py has the whole search that the second is a report of; the third wants a model
that was erased from Canvas, and the fourth NudeNet's detector: test_unlearndiffatk.py has both. Then what fetches from
the hub and from GitHub, the captions of COCO, for which no others pass, and the lines of Slurm's scripts, which
test_docs.py runs whole."""
PROGRAMS = ("metaunlearn", "accelerate", "torchrun", "hf", "curl")
"""The others install, clone, and are a shell's own words in Slurm's scripts."""
FREE_PORT = {"accelerate": ["--main_process_port", "0"], "torchrun": ["--standalone"]}
"""How a launcher is told to look for one: another run here may have the usual."""
PAGES = list(dict.fromkeys(command.page for command in commands("") if command.line.split()[0] in PROGRAMS))
ERASED = ["metaunlearn erase my-model --concept 'a gun' --out runs/erased"]
FIRST = {"docs/guides/attack.md": ERASED, "docs/attacks.md": ERASED}
"""What a page takes as done."""


def test_no_page_lost_its_commands() -> None:
    assert len(PAGES) >= 10


@pytest.mark.skipif("DOCS_CHECK" not in os.environ, reason="slow: make docs-check")
@pytest.mark.parametrize("page", PAGES)
def test_slow_commands_work_on_stand_ins(
    page: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = [command.line for command in commands("") if command.page == page]
    lines = [line for line in [*FIRST.get(page, []), *written] if line.split()[0] in PROGRAMS]
    lines = [line for line in lines if not LEFT_OUT.search(line)]
    named = {word.rpartition("=")[2] for line in lines for word in shlex.split(line)}
    for name, make in STAND_INS.items():
        if name in named and f"--out {name}" not in " ".join(lines):
            Path(name).parent.mkdir(exist_ok=True)
            make(Path(name))
    done = []
    for line in lines:
        program, *words = shlex.split(line)
        outcome = call(*in_little(words)) if program == "metaunlearn" else launched(program, words)
        done.append((line, outcome))
    assert [(line, outcome.err) for line, outcome in done if outcome.code != 0] == []
    assert done


def launched(program: str, words: list[str]) -> Outcome:
    """Started by ``program``: two processes of one thread, which meet at a free port and run the command in little."""
    place = words.index("-m")
    starts = [*("2" if word == "4" else word for word in words[:place]), *FREE_PORT[program]]
    environment = process_environment() | {"OMP_NUM_THREADS": "1"}
    line = [Path(sys.executable).with_name(program), *starts, "-m", words[place + 1], *in_little(words[place + 2 :])]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def in_little(words: list[str]) -> list[str]:
    """The command with fewer steps, without a GPU, with weights that nobody has published, and of a grid the plan."""
    here = [("cpu" if before == "--device" else word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] == "erase":
        return [*here, *(word for setting in FAST for word in ("--set", setting))]
    if words[0] == "convert":
        return [*here, "--own"]
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
