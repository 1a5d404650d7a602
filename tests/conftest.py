"""What several tests share: a tiny but complete Stable Diffusion pipeline, two pictures, and the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Several processes run the tests at once; with a thread for each core in each they would wait for one another. Before
# torch is imported, which reads it; processes that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import metaunlearn
from bench_grids import keep_pictures, made_up, write_many, write_results
from metaunlearn.cli import main
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.meta.train import Algorithm1
from metaunlearn.plugins import package_hash
from metaunlearn.report.page import build_report
from report_fixtures import invented_summary, write_samples
from tiny_models import NEW, SIZES, new_sd1

SLOW_FILES = ["test_processes.py", "test_bench_run.py", "test_tune.py"]
"""They begin first, so that no process is left alone with one of them at the end."""

TINY_SIZE = SIZES["sd1"]
"""Pixels a side of the tiny pipeline's pictures; Canvas's have 64."""


UNET = "unet/diffusion_pytorch_model.safetensors"


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: some tests wait for processes of their own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def same_weights(one: Path, two: Path) -> bool:
    """Whether the denoisers in two saved pipelines are the same bit for bit."""
    a, b = load_file(one / UNET), load_file(two / UNET)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What stands in a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def new_tiny_pipeline() -> StableDiffusionPipeline:
    """The tiny Stable Diffusion 1.x."""
    return new_sd1()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny pipeline, saved by diffusers; three sampling steps do for it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_tiny_pipeline().save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=3, guidance_scale=2.0))
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for packages; what was imported of it is forgotten afterwards."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
    package_hash.cache_clear()


@pytest.fixture(scope="session", params=["sd2", "sdxl"])
def other_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Stable Diffusion 2.x, then XL: whatever works on ``tiny_model`` works on them."""
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    NEW[request.param]().save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=3, guidance_scale=2.0))
    return folder


def break_at_the_fourth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, an erasing run's loss is not finite at step 4."""
    whole = Algorithm1._gradient_at_theta

    def breaking(self: Algorithm1, parts: object) -> object:
        gradient, record = whole(self, parts)  # type: ignore[arg-type]
        if self.step == 3:
            record["loss_forget"] = float("nan")
        return gradient, record

    monkeypatch.setattr(Algorithm1, "_gradient_at_theta", breaking)


def process_environment() -> dict[str, str]:
    """Of another process that imports this very package."""
    return {**os.environ, "PYTHONPATH": str(Path(metaunlearn.__file__).parents[1])}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``metaunlearn ARGUMENTS`` in this process."""

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An imagefolder of two pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "text": "a knife"} for name in ("a", "b")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def demo_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a story."""
    folder = tmp_path_factory.mktemp("demo-page")
    (folder / "summary.json").write_text(json.dumps(invented_summary()))
    write_samples(folder)
    return build_report(folder)


@pytest.fixture(scope="session")
def bench_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small grid, its pictures marked as sensitive."""
    folder = tmp_path_factory.mktemp("bench-page")
    results = made_up(folder)
    keep_pictures(folder, results, sensitive=True)
    write_results(folder, results)
    return build_report(folder)


@pytest.fixture(scope="session")
def wide_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a grid of many attacks."""
    return write_many(tmp_path_factory.mktemp("wide-page"))
