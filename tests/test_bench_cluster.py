"""The Ray executor against a Ray of a few lines: a cluster of two processors that works when it is waited for."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench_grids import changed, plan_of, write_recipe
from metaunlearn.bench.run import run_grid
from metaunlearn.bench.store import CELL_FILE
from metaunlearn.errors import RunError, UserError
from metaunlearn.metrics.scores_file import SCORES_FILE

GRID = changed("concepts", 0, "seeds", to=[0, 1])


class FakeRay(types.ModuleType):
    """Of Ray's names those that are used; a task runs when it is waited for, the last one first."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        super().__init__("ray")
        self.waiting: dict[int, Callable[[], Any]] = {}
        self.most = 0
        self.address = ""
        self.dies: str | None = None

    def is_initialized(self) -> bool:
        return False

    def init(self, *, address: str, log_to_driver: bool) -> None:
        if address != "local":
            raise ConnectionError("nobody answers")
        self.address = address

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        assert options == {"max_retries": 0, "num_cpus": 1}

        def wrap(function: Callable[..., Any]) -> Any:
            def send(*arguments: Any) -> int:
                number = max(self.waiting, default=0) + 1
                self.waiting[number] = lambda: function(*arguments)
                self.most = max(self.most, len(self.waiting))
                return number

            return types.SimpleNamespace(remote=send)

        return wrap

    def wait(self, tasks: list[int], *, num_returns: int) -> tuple[list[int], list[int]]:
        assert set(tasks) == set(self.waiting)
        return [tasks[-1]], tasks[:-1]

    def get(self, task: int) -> Any:
        outcome = self.waiting.pop(task)()
        if outcome.cell.kind == self.dies:
            raise self.exceptions.RayError("the worker died")
        return outcome


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """In Ray's place; cells are made of nothing."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)

    def empty(folder: Path, **_: Any) -> None:
        (folder / SCORES_FILE).write_text(json.dumps({"scores": {}}))

    for kind in ("pictures", "data", "erase", "attack", "measure"):
        monkeypatch.setattr(f"metaunlearn.bench.kinds.{kind}.make", empty)
    return fake


def test_a_cluster_makes_every_cell(ray: FakeRay, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", GRID)
    summary = run_grid(str(recipe), tmp_path / "out", ray="local")
    made = {file.parent.name for file in (tmp_path / "out").glob(f"cells/*/{CELL_FILE}")}
    assert made == set(plan_of(GRID).cells)
    assert (summary["made"], ray.most) == (len(made), 2)


def test_a_worker_that_dies_is_a_cell_that_failed(ray: FakeRay, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", GRID)
    ray.dies = "data"
    with pytest.raises(RunError, match=r"(?s)2 cells failed.*the worker died"):
        run_grid(str(recipe), tmp_path / "out", ray="local")


def test_a_cluster_that_does_not_answer_is_the_users_mistake(ray: FakeRay, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", GRID)
    with pytest.raises(UserError, match=r"no Ray cluster at 'nowhere:1' .*--ray"):
        run_grid(str(recipe), tmp_path / "out", ray="nowhere:1")
    assert not (tmp_path / "out").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = write_recipe(tmp_path / "grid.toml", GRID)
    with pytest.raises(UserError, match=r"pip install 'metaunlearn\[ray\]'"):
        run_grid(str(recipe), tmp_path / "out", ray="local")
