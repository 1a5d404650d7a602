"""Whole erasing runs on a tiny pipeline: what they write, that they resume bit for bit, what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from conftest import TINY_SIZE, UNET, break_at_the_fourth_step, read_lines, same_weights
from forked_runs import run_and_kill
from metaunlearn.attacking import attack
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.erasing import erase
from metaunlearn.erasure.prepare import ROLES, own_pictures
from metaunlearn.errors import RunError, UserError
from metaunlearn.meta.phases import learning_rate_at
from metaunlearn.models import load, load_pipeline
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

FAST = (
    "steps=6", "forget_images=4", "retain_images=4", "bank_trajectories=3", "bank_steps=4", "batch_size=4",
    "checkpoint_every=2",
)  # fmt: skip


def run(model: Path, out: Path, *more: str, **options: object) -> None:
    erase(model, ["zebra"], out=out, overrides=[*FAST, *more], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def erased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run with the meta objective."""
    out = tmp_path_factory.mktemp("erased") / "run"
    run(tiny_model, out)
    return out


def test_result_folder_is_a_pipeline_with_a_record(erased: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(erased, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a zebra", num_inference_steps=2, output_type="pt").images.shape == (1, 3, TINY_SIZE, TINY_SIZE)
    record = json.loads((erased / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["request"]["settings"]["steps"] == 6
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    lines = read_lines(erased / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not (erased / "state").exists()
    assert len(list((erased / "data" / "forget").glob("*.png"))) == 4


def test_retained_pictures_are_at_most_eight_a_prompt(tiny_model: Path, tmp_path: Path) -> None:
    """One text in five templates: 40 pictures where 1,000 were asked for."""
    run(
        tiny_model,
        tmp_path / "run",
        "steps=1",
        "retain_images=1000",
        meta=False,
        retain=["a horse"],
        related=["a pony"],
    )
    for role in ("related", "unrelated"):
        assert len(list((tmp_path / "run" / "data" / role).glob("*.png"))) == 40
    assert len(list((tmp_path / "run" / "data" / "forget").glob("*.png"))) == 4


def test_each_role_has_its_guidance(tiny_model: Path, tmp_path: Path) -> None:
    """The forget pictures are as by default; related and unrelated ones are those of guidance 1."""
    for name, more in (("default", ()), ("one", ("retain_guidance=1",)), ("forget", ("forget_guidance=1",))):
        run(tiny_model, tmp_path / name, "steps=1", *more, meta=False)

    def picture(name: str, role: str) -> bytes:
        return sorted((tmp_path / name / "data" / role).glob("*.png"))[0].read_bytes()

    assert picture("one", "forget") == picture("default", "forget") != picture("forget", "forget")
    for role in ("related", "unrelated"):
        assert picture("one", role) != picture("default", role) == picture("forget", role)


def test_only_the_subset_moves(erased: Path, tiny_model: Path) -> None:
    before, after = load_file(tiny_model / UNET), load_file(erased / UNET)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("attn2" in name or "time_embedding" in name or "conv_out" in name for name in moved)


def test_same_seed_same_weights_other_seed_other_weights(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "again")
    assert same_weights(tmp_path / "again", erased)
    run(tiny_model, tmp_path / "other", seed=1)
    assert not same_weights(tmp_path / "other", erased)


def test_meta_and_plain_differ(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "plain", meta=False)
    assert not same_weights(tmp_path / "plain", erased)


def test_cosine_schedule_ends_near_zero_and_the_constant_one_does_not() -> None:
    """omega (1 + cos(pi n / N)) / 2 at n = 0, N / 2 and N - 1: omega, omega / 2, and omega (1 - cos(pi / N)) / 2."""
    constant = resolve(EraseSettings, read_recipe("small").erase, ["steps=10", "learning_rate_schedule=constant"])
    cosine = constant.model_copy(update={"learning_rate_schedule": "cosine", "learning_rate": 0.2})
    assert learning_rate_at(9, constant) == constant.learning_rate
    assert [learning_rate_at(n, cosine) for n in (0, 5)] == pytest.approx([0.2, 0.1])
    assert learning_rate_at(9, cosine) == pytest.approx(0.1 * (1 - math.cos(math.pi / 10)))


def test_schedule_reaches_the_optimiser(tiny_model: Path, erased: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path / "run", "learning_rate_schedule=constant")
    assert not same_weights(tmp_path / "run", erased)


def test_gamma2_of_zero_is_the_plain_run(tiny_model: Path, tmp_path: Path) -> None:
    """With gamma_2 = 0 the meta objective has no weight, so Algorithm 1 takes the plain run's steps."""
    run(tiny_model, tmp_path / "plain", meta=False)
    run(tiny_model, tmp_path / "zero", "gamma2=0", "meta_gradient=first-order")
    a, b = load_file(tmp_path / "plain" / UNET), load_file(tmp_path / "zero" / UNET)
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6


@pytest.mark.parametrize("stop_after", [1, 4])
def test_killed_run_resumes_to_the_same_weights(
    tiny_model: Path, erased: Path, tmp_path: Path, stop_after: int
) -> None:
    """SIGKILL once ``stop_after`` steps are logged: between two states (1), and on a state's step (4)."""
    out = tmp_path / "run"
    script = (
        "import sys, time; from pathlib import Path; from metaunlearn.erasing import erase\n"
        "def slow(label, done, total):\n"
        "    if label == 'erasing': time.sleep(0.4)\n"
        f"erase(Path(sys.argv[1]), ['zebra'], out=Path(sys.argv[2]), overrides={list(FAST)!r}, progress=slow)\n"
    )
    run_and_kill(script, tiny_model, out, log=out / "log.jsonl", lines=stop_after)
    with pytest.raises(UserError, match="--resume"):
        run(tiny_model, out)
    run(tiny_model, out, resume=True)
    assert same_weights(out, erased)
    assert (out / "log.jsonl").read_text() == (erased / "log.jsonl").read_text()


def test_finished_run_is_left_alone_on_resume(tiny_model: Path, erased: Path) -> None:
    stamp = (erased / UNET).stat().st_mtime_ns
    run(tiny_model, erased, resume=True)
    assert (erased / UNET).stat().st_mtime_ns == stamp


def test_resume_with_other_settings_is_refused(tiny_model: Path, erased: Path) -> None:
    with pytest.raises(UserError, match="settings"):
        run(tiny_model, erased, "learning_rate=0.5", resume=True)


def test_foreign_folder_is_refused_and_untouched(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="holds no run"):
        run(tiny_model, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner_steps=0", "inner_steps"),
        ("steps=-5", "steps"),
        ("gama2=1", "Did you mean 'gamma2'"),
        ("meta_gradient=exact", "meta_gradient"),
        ("steps", "key=value"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    tiny_model: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tiny_model, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("concept", ["", "  ", "zebra|"])
def test_empty_concepts_are_refused(tiny_model: Path, tmp_path: Path, concept: str) -> None:
    with pytest.raises(UserError, match="concept"):
        erase(tiny_model, [concept], out=tmp_path / "out", overrides=FAST)
    assert not (tmp_path / "out").exists()


def test_unknown_method_and_model_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown method"):
        run(tiny_model, tmp_path / "out", method="esd-q-1")
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at_the_fourth_step(monkeypatch)
    with pytest.raises(RunError, match="step 4"):
        run(tiny_model, tmp_path / "out")
    assert (tmp_path / "out" / "state" / "training.safetensors").exists()
    monkeypatch.undo()
    run(tiny_model, tmp_path / "out", resume=True)


def test_a_pipeline_object_is_not_changed(tiny_model: Path) -> None:
    pipeline = load_pipeline(tiny_model)
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    result = erase(pipeline, ["zebra"], overrides=FAST)
    assert all(torch.equal(p, before[name]) for name, p in pipeline.unet.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in result.pipeline.unet.named_parameters())


def test_paths_and_lists_may_be_given_as_text(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: ``erase("canvas", "knife", out="runs/knife")``."""
    monkeypatch.chdir(tmp_path)
    found = erase(str(tiny_model), "zebra", method="uce", meta=False, retain="a dog|a puppy", out="runs/zebra")
    assert found.out == Path("runs/zebra")
    request = json.loads(Path("runs/zebra/run.json").read_text(encoding="utf-8"))["request"]
    assert (request["concepts"], request["retain"]) == (["zebra"], ["a dog|a puppy"])
    attacked = attack("runs/zebra", str(pictures), steps=[1], out="runs/attacked", overrides=["batch_size=2"])
    assert attacked.checkpoints[1].is_relative_to("runs/attacked")


def test_own_pictures_have_prompts_in_turn_and_seeds_of_their_role_and_run(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_model)
    prompts = prompts_for(model.pipeline, ["zebra"], retain=["a chair"], related=["a horse"])
    settings = resolve(EraseSettings, read_recipe("small").erase, ["forget_images=7", "retain_images=7"])
    seen: list[int] = []

    def generate(_: Any, texts: list[str], seeds: list[int], **options: Any) -> Tensor:
        assert texts == [pool[i % len(pool)] for i in range(7)]
        assert options["guidance_scale"] == (settings.forget_guidance if role == "forget" else settings.retain_guidance)
        seen.extend(seeds)
        return torch.zeros(len(texts), 3, TINY_SIZE, TINY_SIZE)

    monkeypatch.setattr("metaunlearn.erasure.prepare.generate_images", generate)
    for seed in (0, 1):
        for role in ROLES:
            pool = getattr(prompts, role)
            own_pictures(model, role, prompts, settings, seed, None, None)
    assert len(set(seen)) == len(seen) == 2 * 3 * 7
