"""Methods with a defence of their own as whole runs on a tiny pipeline: records, resuming, bench, the doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench_grids import changed, plan_of
from conftest import UNET, Call, break_at_the_fourth_step, read_lines, same_weights
from forked_runs import run_and_kill
from metaunlearn.doctor import estimate
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError, UserError
from metaunlearn.story import demo

FAST = (
    "steps=5", "forget_images=4", "retain_images=4", "batch_size=4", "checkpoint_every=2", "diagnostics_every=0",
)  # fmt: skip
BASE = "base_set=steps=5,bank_trajectories=3,bank_steps=4,checkpoint_every=2,batch_size=4"
MORE = {
    "resalign": ("meta_gradient=first-order", "sampled=2", "ema_decay=0.5"),
    "imma": (BASE, "retain_weight=0.1"),
}


def run(model: Path, out: Path, method: str, *more: str, **options: object) -> None:
    overrides = [*FAST, *MORE[method], *more]
    erase(model, ["zebra"], method=method, out=out, overrides=overrides, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def erased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each."""
    folder = tmp_path_factory.mktemp("defended")
    for method in MORE:
        run(tiny_model, folder / method, method)
    return {method: folder / method for method in MORE}


@pytest.mark.parametrize("method", MORE)
def test_a_run_leaves_its_record(erased: dict[str, Path], tiny_model: Path, method: str) -> None:
    record = json.loads((erased[method] / "run.json").read_text())
    assert (record["status"], record["meta"], record["request"]["meta"]) == ("complete", False, False)
    lines = read_lines(erased[method] / "log.jsonl")
    steps = [line for line in lines if line["step"] > 0]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert all({"loss_concept", "loss_finetuning", "loss_retain", "gradient_norm"} <= line.keys() for line in steps)
    assert not any("loss_forget" in line for line in steps)
    if method == "imma":
        assert record["base"] == lines[0]["base"] == {"method": "esd-u-1", "steps": 5}
        assert record["request"]["base"]["settings"]["steps"] == 5
    before, after = load_file(tiny_model / UNET), load_file(erased[method] / UNET)
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("method", MORE)
def test_precision_is_that_of_a_defences_passes(tiny_model: Path, tmp_path: Path, method: str) -> None:
    """There are no others: nothing is retained."""
    for precision in ("float32", "bf16"):
        run(tiny_model, tmp_path / precision, method, "steps=1", "retain_weight=0", f"precision={precision}")
    assert not same_weights(tmp_path / "float32", tmp_path / "bf16")


def test_imma_trains_attention_alone_on_what_its_base_erased(
    erased: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    run(tiny_model, tmp_path / "none", "imma", "base=none", "base_set=")
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "none" / UNET)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(".to_q." in name or ".to_k." in name or ".to_v." in name or ".to_out.0." in name for name in changed)
    assert not same_weights(tmp_path / "none", erased["imma"])


@pytest.mark.parametrize(("method", "label"), [("resalign", "erasing"), ("imma", "erasing"), ("imma", "erasing first")])
def test_killed_runs_resume_to_the_same_weights(
    tiny_model: Path, erased: dict[str, Path], tmp_path: Path, method: str, label: str
) -> None:
    """SIGKILL between two states, of the method itself and of the method that goes before it."""
    out = tmp_path / "run"
    ticks = tmp_path / "ticks"
    script = (
        "import sys, time; from pathlib import Path; from metaunlearn.erasing import erase\n"
        "def slow(label, done, total):\n"
        f"    if label == {label!r}:\n"
        f"        Path({str(ticks)!r}).open('a').write('x\\n'); time.sleep(0.5)\n"
        f"erase(Path(sys.argv[1]), ['zebra'], method={method!r}, out=Path(sys.argv[2]), "
        f"overrides={[*FAST, *MORE[method]]!r}, progress=slow)\n"
    )
    run_and_kill(script, tiny_model, out, log=ticks, lines=3)
    run(tiny_model, out, method, resume=True)
    assert same_weights(out, erased[method])
    assert (out / "log.jsonl").read_text() == (erased[method] / "log.jsonl").read_text()


def test_a_base_that_breaks_down_goes_on(
    tiny_model: Path, erased: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step 4 is not finite; its state of step 2 is where the next try begins."""
    with monkeypatch.context() as patch:
        break_at_the_fourth_step(patch)
        with pytest.raises(RunError, match="not finite at step 4"):
            run(tiny_model, tmp_path / "run", "imma")
    assert (tmp_path / "run" / "state" / "base-training.safetensors").exists()
    run(tiny_model, tmp_path / "run", "imma", resume=True)
    assert same_weights(tmp_path / "run", erased["imma"])


def test_the_command_line_turns_the_meta_objective_off_and_says_so(
    call: Call, tiny_model: Path, tmp_path: Path
) -> None:
    sets = [word for setting in (*FAST, "steps=1", "base=uce") for word in ("--set", setting)]
    outcome = call(
        "erase", tiny_model, "--concept", "zebra", "--method", "imma", *sets, "--json", "--out", tmp_path / "o"
    )
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert (found["meta"], found["base"]) == (False, {"method": "uce-2023", "steps": 0})
    assert "imma has a defence of its own: the meta objective is off" in outcome.err


def test_grids_have_them_beside_the_meta_objective() -> None:
    """They have no meta-unlearned model, and no ear for what the others' meta objective is told."""
    models = ["unlearn", "meta-unlearn"]
    grid = changed("methods", to=["esd-x-1", "imma", "resalign"], of=changed("models", to=models))
    plan = plan_of(grid)
    assert {(row.method, row.model) for row in plan.rows} == {
        ("esd-x-1", "unlearn"), ("esd-x-1", "meta-unlearn"), ("imma", "unlearn"), ("resalign", "unlearn")
    }  # fmt: skip

    def erasing(grid: dict[str, object], method: str) -> set[str]:
        cells = plan_of(grid).cells.values()
        return {cell.name for cell in cells if cell.kind == "erase" and cell.labels["method"] == method}

    for method in ("imma", "resalign"):
        assert erasing(changed("set", "zeta", to=0.25, of=grid), method) == erasing(grid, method)
    for method, key in (("imma", "inner_steps"), ("resalign", "batch_size")):
        assert erasing(changed("set", key, to=4, of=grid), method) != erasing(grid, method)
    alone = changed("methods", to=["imma"], of=grid)
    assert erasing(changed("set", "base_set", to="steps=3", of=alone), "imma") != erasing(alone, "imma")


def test_the_demo_wants_a_plain_and_a_meta_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'imma' has a defence of its own \(method="):
        demo(tmp_path / "demo", method="imma")
    assert not (tmp_path / "demo").exists()


def test_the_doctor_counts_their_gradients(tiny_model: Path) -> None:
    """IMMA: L_retain, two turns down, one up. ResAlign: L_retain, L(theta); and for either of two configurations 3
    steps, L(theta_FT) and twice K - 1 = 4 products."""
    assert estimate(tiny_model, method="imma", overrides=["inner_steps=2"], speed=1e9).gradients_per_step == 4
    attackers = (
        'attackers=[{optimizer="sgd", learning_rate=0.1, steps=2}, {optimizer="sgd", learning_rate=0.1, steps=4}]'
    )
    overrides = [attackers, "meta_gradient=gradient-difference"]
    assert estimate(tiny_model, method="resalign", overrides=overrides, speed=1e9).gradients_per_step == 26
