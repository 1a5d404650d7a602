"""The Ray executor against a Ray of a few lines: a cluster of two processors that works when it is waited for.

``test_bench_run.py`` has it against Ray itself.
"""

from __future__ import annotations

import json
import platform
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench_grids import changed, plan_of, write_recipe
from metaunlearn.bench.cluster import LOSSES
from metaunlearn.bench.needs import PROCESS
from metaunlearn.bench.plan import make_plan
from metaunlearn.bench.recipe import Grid, read_bench
from metaunlearn.bench.run import dry_run, run_grid
from metaunlearn.bench.store import CELL_FILE
from metaunlearn.doctor import estimate, weights_bytes
from metaunlearn.errors import RunError, UserError
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.models import load_pipeline
from metaunlearn.settings import resolve

GRID = changed("concepts", 0, "seeds", to=[0, 1])
LOST = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError")


class Exceptions:
    class RayError(Exception):
        pass

    class WorkerCrashedError(RayError):
        pass

    class NodeDiedError(RayError):
        pass

    class OutOfMemoryError(RayError):
        pass


class FakeRay(types.ModuleType):
    """Of Ray's names those that are used; a task runs when it is waited for, the last one first."""

    exceptions = Exceptions

    def __init__(self) -> None:
        super().__init__("ray")
        self.waiting: dict[int, Callable[[], Any]] = {}
        self.sent = 0
        self.most = 0
        self.asked: dict[str, list[dict[str, Any]]] = {}
        """By cell, what each attempt asked for."""
        self.resources = {"CPU": 2.0, "memory": 2.0**40}
        self.dies: dict[str, str] = {}
        """By kind of cell, the error of its first worker, or of all of them."""
        self.always = False

    def is_initialized(self) -> bool:
        return False

    def init(self, *, address: str, log_to_driver: bool, **options: bool) -> None:
        assert options == ({"include_dashboard": False} if address == "local" else {})
        if address != "local":
            raise ConnectionError("nobody answers")

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"GPU": 8.0, "memory": 2.0**50}}
        return [{"Alive": True, "Resources": self.resources}, gone]

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, *, max_retries: int) -> Callable[[Callable[..., Any]], Any]:
        assert max_retries == 0

        def wrap(function: Callable[..., Any]) -> Any:
            return types.SimpleNamespace(options=lambda **asked: self._sender(function, asked))

        return wrap

    def _sender(self, function: Callable[..., Any], asked: dict[str, Any]) -> Any:
        def send(out: Path, cell: Any, device: str, task: str, threads: int) -> int:
            self.sent += 1
            self.waiting[self.sent] = lambda: self._work(function, out, cell, device, task, threads)
            self.asked.setdefault(cell.name, []).append(asked)
            self.most = max(self.most, len(self.waiting))
            return self.sent

        return types.SimpleNamespace(remote=send)

    def _work(self, function: Callable[..., Any], out: Path, cell: Any, device: str, task: str, threads: int) -> Any:
        """A worker that dies leaves its lock, which is another host's."""
        error = self.dies.get(cell.kind) if self.always or len(self.asked[cell.name]) == 1 else None
        if error is None:
            return function(out, cell, device, task, threads)
        (out / "locks").mkdir(exist_ok=True)
        (out / "locks" / f"{cell.name}.lock").write_text(json.dumps({"host": "elsewhere", "task": task}))
        raise getattr(self.exceptions, error)("it died")

    def wait(self, tasks: list[int], *, num_returns: int, timeout: float | None = None) -> tuple[list[int], list[int]]:
        assert set(tasks) == set(self.waiting)
        return [tasks[-1]], tasks[:-1]

    def get(self, task: int) -> Any:
        return self.waiting.pop(task)()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """In Ray's place; cells are made of nothing, by one thread."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)

    def empty(folder: Path, **_: Any) -> None:
        (folder / SCORES_FILE).write_text(json.dumps({"scores": {}}))

    def one_thread(threads: int) -> None:
        assert threads == 1

    for kind in ("pictures", "data", "erase", "attack", "measure"):
        monkeypatch.setattr(f"metaunlearn.bench.kinds.{kind}.make", empty)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", one_thread)
    monkeypatch.setattr("metaunlearn.bench.cluster.QUIET", 0.0)
    return fake


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "grid.toml", GRID))


def cell_of(kind: str, device: str = "cpu") -> Any:
    return next(cell for cell in make_plan(resolve(Grid, GRID), device=device).cells.values() if cell.kind == kind)


def test_a_cluster_makes_every_cell(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    summary = run_grid(recipe, tmp_path / "out", ray="local")
    made = {file.parent.name for file in (tmp_path / "out").glob(f"cells/*/{CELL_FILE}")}
    assert made == set(plan_of(GRID).cells)
    assert (summary["made"], ray.most) == (len(made), 2)


def test_a_cell_asks_for_what_the_doctor_counts(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """On CPUs the memory of erasing and of the process around it; a data set needs no model."""
    run_grid(recipe, tmp_path / "out", ray="local")
    call = cell_of("erase").call
    counted = estimate(
        load_pipeline("canvas"), method="esd-x-1", meta=True, recipe="small", overrides=call["overrides"], speed=1.0
    )
    assert ray.asked[cell_of("erase").name] == [
        {"num_cpus": 1, "num_gpus": 0, "memory": counted.memory_bytes + PROCESS}
    ]
    assert ray.asked[cell_of("data").name] == [{"num_cpus": 1, "num_gpus": 0, "memory": PROCESS}]
    memory = {kind: ray.asked[cell_of(kind).name][0]["memory"] for kind in ("attack", "measure")}
    assert memory["attack"] > memory["measure"] > PROCESS


def test_on_gpus_each_cell_with_a_model_has_one(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """And RAM for the weights on their way there."""
    ray.resources["GPU"] = 1.0
    run_grid(recipe, tmp_path / "out", ray="local", device="cuda")
    memory = weights_bytes(load_pipeline("canvas")) + PROCESS
    assert ray.asked[cell_of("erase", "cuda").name] == [{"num_cpus": 1, "num_gpus": 1, "memory": memory}]
    assert ray.asked[cell_of("data").name] == [{"num_cpus": 1, "num_gpus": 0, "memory": PROCESS}]
    assert ray.most == 1


def test_a_cluster_without_a_gpu_is_refused(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no machine of the Ray cluster at 'local' has a GPU .*--device"):
        run_grid(recipe, tmp_path / "out", ray="local", device="cuda")


def test_a_cluster_chooses_the_gpu_itself(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """Its workers have one each, ``cuda:0`` there: that of another number would be none."""
    ray.resources["GPU"] = 2.0
    with pytest.raises(UserError, match=r"got device='cuda:1' \(--device\): .* --device cuda\."):
        run_grid(recipe, tmp_path / "out", ray="local", device="cuda:1")
    with pytest.raises(UserError, match="--device cuda"):
        dry_run(recipe, tmp_path / "out", ray="local", device="cuda:1")
    assert not (tmp_path / "out").exists()


def test_no_more_is_asked_for_than_a_machine_has(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """Else the cell would wait for ever, and the count is an estimate."""
    ray.resources["memory"] = 5.0
    run_grid(recipe, tmp_path / "out", ray="local")
    assert {asked["memory"] for attempts in ray.asked.values() for asked in attempts} == {5}


@pytest.mark.parametrize("error", LOST)
def test_the_cell_of_a_lost_worker_is_made_again(
    ray: FakeRay, recipe: str, tmp_path: Path, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, although its lock is that of a host that cannot be asked; more memory if that had run out."""
    ray.dies = {"data": error}
    assert run_grid(recipe, tmp_path / "out", ray="local")["made"] == len(plan_of(GRID).cells)
    first, second = ray.asked[cell_of("data").name]
    assert second["memory"] == first["memory"] * (2 if error == "OutOfMemoryError" else 1)
    assert sum(f"its worker was lost ({error})" in record.getMessage() for record in caplog.records) == 2


def test_a_cell_whose_workers_are_lost_again_and_again_has_failed(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    ray.dies, ray.always = {"data": "WorkerCrashedError"}, True
    with pytest.raises(RunError, match=r"(?s)2 cells failed.*the last of 4 workers that were lost: it died"):
        run_grid(recipe, tmp_path / "out", ray="local")
    assert len(ray.asked[cell_of("data").name]) == LOSSES + 1


def test_what_breaks_on_the_way_is_a_cell_that_failed(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """A package that the worker lacks, say: it would lack it again."""
    ray.dies = {"data": "RayError"}
    with pytest.raises(RunError, match=r"(?s)2 cells failed.*RayError: it died"):
        run_grid(recipe, tmp_path / "out", ray="local")
    assert len(ray.asked[cell_of("data").name]) == 1


def test_a_cluster_that_does_not_answer_is_the_users_mistake(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster at 'nowhere:1' .*--ray"):
        run_grid(recipe, tmp_path / "out", ray="nowhere:1")
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'metaunlearn\[ray\]'"):
        run_grid(recipe, tmp_path / "out", ray="local")


def test_cells_have_the_key_of_the_device_that_was_asked_for(ray: FakeRay, recipe: str, tmp_path: Path) -> None:
    """They are made by workers, and counted, under the names that a dry run and a local run on such a device have."""
    ray.resources = {"CPU": 2.0, "GPU": 1.0, "memory": 2.0**40}
    out = tmp_path / "out"
    run_grid(recipe, out, ray="local", device="cuda")
    made = {file.parent.name for file in out.glob(f"cells/*/{CELL_FILE}")}
    assert made == set(make_plan(read_bench(recipe).grid, device="cuda").cells)
    assert not {name for name in made & set(plan_of(GRID).cells) if not name.startswith("data-")}
    assert dry_run(recipe, out, device="cuda").todo == []
    assert {cell["cell"] for cell in dry_run(recipe, out).todo} == set(plan_of(GRID).cells) - made


def test_a_worker_that_has_another_base_model_makes_nothing(
    ray: FakeRay, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worker(cell: Any) -> None:
        if cell.kind == "pictures":
            raise UserError("canvas is another")

    monkeypatch.setattr("metaunlearn.bench.work.check_inputs", worker)
    with pytest.raises(RunError, match=f"{platform.node()}: canvas is another"):
        run_grid(recipe, tmp_path / "out", ray="local")
    made = {file.parent.name.split("-")[0] for file in (tmp_path / "out").glob(f"cells/*/{CELL_FILE}")}
    assert made == {"data"}
