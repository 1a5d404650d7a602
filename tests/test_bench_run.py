"""bench at work on a tiny grid of Canvas: what is made, what is kept, and what becomes of stopped and shared runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from bench_grids import CELLS, TINY, changed, plan_of, write_recipe
from conftest import Call
from forked_runs import run_and_kill, start
from metaunlearn.bench.estimate import outlook
from metaunlearn.bench.results import Results
from metaunlearn.bench.run import TABLES_FILE, run_grid
from metaunlearn.bench.store import CELL_FILE, Store
from metaunlearn.bench.work import make
from metaunlearn.checkpoint import load_tensors
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError, UserError
from metaunlearn.models import load_pipeline
from metaunlearn.models.state import with_components
from metaunlearn.report.page import build_report
from metaunlearn.runs import RESULTS_FILE
from ray_nodes import killing, two_nodes

RUN = "import sys; from pathlib import Path; from metaunlearn.bench.run import run_grid; "
SCRIPT = RUN + "made = run_grid(sys.argv[1], Path(sys.argv[2]))['made']"


@pytest.fixture(scope="session")
def tiny_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe ``grid.toml`` and its whole bench in ``out``; tests copy what they change."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = write_recipe(folder / "grid.toml", TINY)
    assert run_grid(str(recipe), folder / "out")["made"] == CELLS
    return folder


@pytest.fixture
def bench(tiny_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(tiny_grid, tmp_path / "bench", copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path / "bench")
    return tmp_path / "bench"


def cells(out: Path) -> set[str]:
    return {file.parent.name for file in out.glob(f"cells/*/{CELL_FILE}")}


def results(out: Path) -> dict[str, object]:
    """``results.json`` without the recipe's name, which is its path."""
    found: dict[str, object] = json.loads((out / "grid" / RESULTS_FILE).read_text())
    return {key: value for key, value in found.items() if key != "bench"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors")[0]


def test_what_a_bench_leaves(tiny_grid: Path) -> None:
    out = tiny_grid / "out"
    assert cells(out) == set(plan_of(TINY).cells)
    assert not list(out.glob("cells/.*"))
    assert not list(out.glob("locks/*.lock"))
    found = json.loads((out / "grid" / RESULTS_FILE).read_text())
    assert [(row["attack"], row["step"]) for row in found["rows"]] == [("before", 0), ("HRM-m", 1), ("HRM-m", 2)]
    assert all(row["scores"]["concept"]["protocol"] in found["protocols"] for row in found["rows"])
    assert "unrelated" in found["rows"][0]["scores"]
    assert "unrelated" not in found["rows"][1]["scores"]
    assert "| method | model | before | HRM-m 1 | HRM-m 2 |" in (out / "grid" / TABLES_FILE).read_text()
    page = (out / "grid" / "report.html").read_text()
    assert "nothing is compared" in page
    assert page.count("<img ") == 2  # Before the attack and after its last step.
    assert {len(list(out.glob(f"cells/attack-*/step-00000{step}/unet"))) for step in (1, 2)} == {1}


def test_a_whole_bench_is_not_made_again(bench: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in Path("out/cells").rglob("*")}
    (Path("out") / "grid" / RESULTS_FILE).unlink()
    assert run_grid("grid.toml", Path("out"))["made"] == 0
    assert {file: file.stat().st_mtime_ns for file in Path("out/cells").rglob("*")} == before
    assert (Path("out") / "grid" / RESULTS_FILE).exists()


def test_other_counts_repeat_no_training(bench: Path) -> None:
    before = cells(Path("out"))
    write_recipe(Path("grid.toml"), changed("measure", "between", "concept", to=3))
    assert run_grid("grid.toml", Path("out"))["made"] == 1
    new = cells(Path("out")) - before
    assert [name.split("-")[0] for name in new] == ["measure"]


def test_a_part_of_a_grid(bench: Path) -> None:
    write_recipe(Path("grid.toml"), changed("models", to=["original", "unlearn", "meta-unlearn"]))
    before = cells(Path("out"))
    summary = run_grid("grid.toml", Path("out"), only=["model=original"])
    assert (summary["rows"], summary["made"]) == (1, 1)
    assert len(cells(Path("out")) - before) == 1
    assert {row["model"] for row in results(Path("out"))["rows"]} == {"original", "meta-unlearn"}  # type: ignore[attr-defined]


def test_a_dry_run_does_nothing(bench: Path, call: Call) -> None:
    write_recipe(Path("grid.toml"), changed("concepts", 0, "seeds", to=[0, 1]))
    outcome = call("bench", "grid.toml", "--out", "new", "--dry-run", "--json")
    found = json.loads(outcome.out)
    assert (outcome.code, len(found["todo"]), found["memory_bytes"] > 0) == (0, 2 * CELLS, True)
    by_kind = {part["kind"]: part for part in found["kinds"]}
    assert by_kind["erase"]["memory_bytes"] > by_kind["measure"]["memory_bytes"] > by_kind["data"]["memory_bytes"] == 0
    assert all(part["seconds"] > 0 and part["counted"] for kind, part in by_kind.items() if kind != "data")
    assert (found["there"], {cell["seconds"] is None for cell in found["todo"]}) == ([], {False})
    assert not Path("new").exists()

    found = json.loads(call("bench", "grid.toml", "--out", "out", "--dry-run", "--json").out)
    assert len(found["todo"]) == CELLS
    assert all(part["seconds"] > 0 and not part["counted"] for part in found["kinds"])
    assert len(found["there"]) == CELLS
    said = call("bench", "grid.toml", "--out", "out", "--dry-run").out
    assert "states measured" not in said
    assert "doctor" not in said
    there = said.partition("\nthere:\n")[2]
    assert all(cell["cell"] in there for cell in found["there"])


def test_the_estimate_is_that_of_like_cells(bench: Path) -> None:
    """One erasing of 4 steps that took 40 s: another seed of 4 steps takes 40 s."""
    file = next(Path("out").glob("cells/erase-*/cell.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 40.0}))
    plan = plan_of(changed("concepts", 0, "seeds", to=[0, 1]))
    found = {part.kind: part for part in outlook(plan, Store(Path("out")), [row.cell for row in plan.rows]).kinds}
    assert (found["erase"].cells, found["erase"].cached, found["erase"].seconds) == (2, 1, 40.0)


def test_a_half_written_cell_is_none(bench: Path) -> None:
    whole = results(Path("out"))
    for kind in ("measure", "data", "pictures"):
        for cell in [cell for cell in plan_of(TINY).cells.values() if cell.kind == kind]:
            folder = Store(Path("out")).folder(cell.name)
            partial = Store(Path("out")).partial(cell.name)
            folder.rename(partial)
            (partial / CELL_FILE).unlink()
            for file in partial.rglob("*.json*"):
                file.unlink()
    # Pictures and data are needed by nothing that is left to be made.
    assert run_grid("grid.toml", Path("out"))["made"] == 3
    assert results(Path("out")) == whole


def test_a_killed_bench_goes_on(tiny_grid: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of erasing: the next call takes the remaining steps and ends with the same figures."""
    out = tmp_path / "out"
    erased = next(name for name in plan_of(TINY).cells if name.startswith("erase-"))
    log = out / "cells" / f".{erased}.partial" / "log.jsonl"
    run_and_kill(SCRIPT, tiny_grid / "grid.toml", out, log=log, lines=2)
    assert erased not in cells(out)
    assert list(out.glob("locks/*.lock"))
    begun = len(cells(out))
    assert run_grid(str(tiny_grid / "grid.toml"), out)["made"] == CELLS - begun
    assert results(out) == results(tiny_grid / "out")
    assert weights(out / "cells" / erased).keys() == weights(tiny_grid / "out" / "cells" / erased).keys()
    for name, tensor in weights(out / "cells" / erased).items():
        assert torch.equal(tensor, weights(tiny_grid / "out" / "cells" / erased)[name])


def test_two_processes_share_the_work(tiny_grid: Path, tmp_path: Path) -> None:
    """Each cell is made once, by one of them; both end when all is there, with the figures of one process."""
    out = tmp_path / "out"
    counts = [tmp_path / "one", tmp_path / "other"]
    script = SCRIPT + "; Path(sys.argv[3]).write_text(str(made))"
    both = [start(script, tiny_grid / "grid.toml", out, count) for count in counts]
    for process in both:
        process.join(timeout=300)
    assert [process.exitcode for process in both] == [0, 0]
    assert sum(int(count.read_text()) for count in counts) == CELLS
    assert results(out) == results(tiny_grid / "out")


def test_a_cell_that_another_process_made_meanwhile_is_not_counted(bench: Path) -> None:
    """Between the look at what is left and the taking of the lock it may have become whole, or have been dropped."""
    store = Store(Path("out"))
    cell = next(cell for cell in plan_of(TINY).cells.values() if cell.kind == "data")
    assert make(store, cell).state == "there"
    store.remove(cell.name)
    store.remove(cell.name)
    assert not store.complete(cell.name)
    assert make(store, cell).state == "made"


def test_two_nodes_of_a_ray_cluster_and_a_worker_killed_in_the_middle(
    tiny_grid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost: its cell goes on elsewhere, and the figures and weights are the local run's, bit for bit."""
    pytest.importorskip("ray", reason="no ray: pip install ray")
    out = tmp_path / "out"
    erased = next(name for name in plan_of(TINY).cells if name.startswith("erase-"))
    with two_nodes(processors=torch.get_num_threads()) as address, killing(out, erased, lines=2) as killed:
        made = run_grid(str(tiny_grid / "grid.toml"), out, ray=address)["made"]
    assert (len(killed), made) == (1, CELLS)
    assert [record.getMessage() for record in caplog.records if "was lost" in record.getMessage()] == [
        f"{erased}: its worker was lost (WorkerCrashedError); it is made again"
    ]
    assert results(out) == results(tiny_grid / "out")
    one, other = weights(out / "cells" / erased), weights(tiny_grid / "out" / "cells" / erased)
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not list(out.glob("locks/*.lock"))


@pytest.mark.parametrize("error", [RunError("the loss is not finite"), RuntimeError("the loss is not finite")])
def test_one_cell_that_fails_does_not_stop_the_others(
    error: Exception, bench: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """Nor does one that runs out of memory, or into a mistake of ours; where that happened, a file says."""

    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("metaunlearn.bench.kinds.erase.make", breaks)
    write_recipe(Path("grid.toml"), changed("models", to=["original", "unlearn", "meta-unlearn"]))
    outcome = call("bench", "grid.toml", "--out", "out")
    assert outcome.code == 1
    assert "1 cells failed" in outcome.err
    assert "the loss is not finite" in outcome.err
    tracebacks = [file.read_text() for file in Path("out", "errors").glob("erase-*.txt")]
    assert len(tracebacks) == (not isinstance(error, RunError))
    assert all("in breaks" in text for text in tracebacks)
    assert {row["model"] for row in results(Path("out"))["rows"]} == {"original", "meta-unlearn"}  # type: ignore[attr-defined]


def test_checkpoints_need_not_stay(bench: Path) -> None:
    """Without them a bench is still whole; another count makes the attack, and nothing before it, again."""
    write_recipe(
        Path("grid.toml"), changed("measure", "last", "concept", to=2, of=changed("keep_checkpoints", to=False))
    )
    assert run_grid("grid.toml", Path("out"))["made"] == 1
    assert not list(Path("out").glob("cells/attack-*"))
    assert run_grid("grid.toml", Path("out"))["made"] == 0
    write_recipe(
        Path("grid.toml"), changed("measure", "last", "concept", to=3, of=changed("keep_checkpoints", to=False))
    )
    assert run_grid("grid.toml", Path("out"))["made"] == 2


def test_shared_pictures_are_those_that_erase_makes(tiny_grid: Path, tmp_path: Path) -> None:
    cell = next(cell for cell in plan_of(TINY).cells.values() if cell.kind == "erase")
    erase(
        "canvas", ["knife"], method="esd-x-1", recipe="small", overrides=cell.call["overrides"], out=tmp_path / "alone"
    )
    alone, shared = weights(tmp_path / "alone"), weights(tiny_grid / "out" / "cells" / cell.name)
    assert all(torch.equal(alone[name], shared[name]) for name in alone)


def test_a_plain_run_is_the_same_whatever_the_meta_objective(tmp_path: Path) -> None:
    """Else variants of it could not share one plain run."""
    overrides = [f"{key}={value}" for key, value in {**TINY["set"], "steps": 2}.items()]
    for name, more in {"one": [], "other": ["inner_steps=2", "gamma2=0.9", "zeta=0.9", "inner_optimizer=adam"]}.items():
        erase(
            "canvas", ["knife"], method="esd-x-1", meta=False, recipe="small", overrides=[*overrides, *more],
            shared_overrides=True, out=tmp_path / name,
        )  # fmt: skip
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_attacked_state_has_the_attacked_denoiser(tiny_grid: Path) -> None:
    out = tiny_grid / "out" / "cells"
    erased, attacked = next(out.glob("erase-*")), next(out.glob("attack-*"))
    steps = [weights(attacked / f"step-00000{step}") for step in (1, 2)]
    states = [weights(erased), *steps]
    pipeline = with_components(load_pipeline(erased), attacked / "step-000002")
    found = dict(pipeline.unet.named_parameters())
    assert all(torch.equal(found[name], steps[1][name]) for name in found)
    name = next(name for name in found if "to_k" in name)
    assert not torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[1][name], states[2][name])


def test_a_warm_up_goes_before_an_attack(bench: Path) -> None:
    """Two steps on the same pictures after a warm-up of two: elsewhere than two steps from the erased model."""
    warm_up = {"data": "clean", "pictures": 2, "steps": 2}
    write_recipe(Path("grid.toml"), changed("attacks", 0, "warm_up", to=warm_up))
    before = cells(Path("out"))
    assert run_grid("grid.toml", Path("out"))["made"] == 5  # Data, two attacks, two states.
    attacks = [Path("out/cells") / name for name in cells(Path("out")) - before if name.startswith("attack-")]
    warmed = next(folder for folder in attacks if "warm" in json.loads((folder / CELL_FILE).read_text())["needs"])
    plain = next(Path("out/cells") / name for name in before if name.startswith("attack-"))
    one, other = weights(warmed / "step-000002"), weights(plain / "step-000002")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_erasing_shares_the_teachers_paths(bench: Path) -> None:
    """They depend on neither gamma_2 nor the meta objective, so one file serves three models."""
    changes = changed("models", to=["unlearn", "meta-unlearn"], of=changed("set", "gamma2", to=2.0))
    write_recipe(Path("grid.toml"), changes)
    banks = [file.stat().st_mtime_ns for file in Path("out/shared").rglob("bank-*.safetensors")]
    assert run_grid("grid.toml", Path("out"))["made"] > 0
    assert [file.stat().st_mtime_ns for file in Path("out/shared").rglob("*.safetensors")] == banks
    assert len(banks) == 1


def test_a_folder_with_something_else_is_refused(tiny_grid: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    outcome = call("bench", tiny_grid / "grid.toml", "--out", tmp_path)
    assert (outcome.code, "--out" in outcome.err) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        Store.claim(tmp_path / "thesis.txt")


def test_the_command_line_says_where_the_tables_are(bench: Path, call: Call) -> None:
    outcome = call("bench", "grid.toml", "--out", "out")
    assert outcome.code == 0
    assert "tables: out/grid/tables.md" in outcome.out
    assert call("report", "out").code == 0
    assert call("bench", "smal", "--out", "out").code == 2


def test_each_recipe_of_a_folder_has_a_page_of_its_own(bench: Path, call: Call) -> None:
    """A second one on the same cells leaves the first one's tables and page as they are."""
    first = {file.name: file.read_text() for file in Path("out/grid").iterdir()}
    assert set(first) == {"results.json", "tables.md", "table.csv", "report.html"}
    shutil.copy("grid.toml", "other.toml")
    assert run_grid("other.toml", Path("out"), only=["step=2"])["made"] == 0
    assert {file.name: file.read_text() for file in Path("out/grid").iterdir()} == first
    assert "metaunlearn bench other.toml --out DIR" in Path("out/other/report.html").read_text(encoding="utf-8")

    pages = [Path("out/grid/report.html"), Path("out/other/report.html")]
    for page in pages:
        page.unlink()
    with pytest.raises(UserError, match=r"out holds 2 grids; .*: out/grid, out/other\."):
        build_report(Path("out"))
    assert call("report", "out/other").code == 0
    assert [page.exists() for page in pages] == [False, True]
    found = json.loads(call("report", "out", "--json").out)
    assert found == {"report": str(pages[0]), "more": [str(pages[1])]}
    assert pages[0].read_text() == first["report.html"]


def test_results_do_not_depend_on_the_reader(tiny_grid: Path) -> None:
    from metaunlearn.bench.recipe import read_bench

    recipe = read_bench(str(tiny_grid / "grid.toml"))
    twice = [Results(recipe, plan_of(TINY), Store(tiny_grid / "out")).found().to_dict() for _ in range(2)]
    assert twice[0] == twice[1]
