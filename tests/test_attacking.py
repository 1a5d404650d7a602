"""Whole attacks on a tiny pipeline: checkpoints, determinism, resume, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from attack_fixtures import write_pictures
from conftest import UNET, read_lines, same_weights
from metaunlearn.attacking import attack
from metaunlearn.attacks.interface import Training
from metaunlearn.attacks.loop import Loop
from metaunlearn.attacks.registry import configure
from metaunlearn.errors import RunError, UserError
from metaunlearn.recipe import read_recipe

FAST = ("batch_size=2", "checkpoint_every=2")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def attacked(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "run"
    attack(tiny_model, pictures, steps=(0, 2, 5), overrides=FAST, out=out)
    return out


def logged_steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / "log.jsonl")]


def test_every_checkpoint_is_a_pipeline(attacked: Path, tiny_model: Path) -> None:
    for step in (0, 2, 5):
        DiffusionPipeline.from_pretrained(attacked / f"step-{step:06d}", safety_checker=None)
        assert json.loads((attacked / f"step-{step:06d}" / "run.json").read_text())["step"] == step
        assert logged_steps(attacked / f"step-{step:06d}") == list(range(1, step + 1))
    assert same_weights(attacked / "step-000000", tiny_model)
    assert not same_weights(attacked / "step-000002", attacked / "step-000005")
    assert same_weights(attacked, attacked / "step-000005")
    assert logged_steps(attacked) == [1, 2, 3, 4, 5]


def test_all_parameters_move(attacked: Path, tiny_model: Path) -> None:
    before, after = load_file(tiny_model / UNET), load_file(attacked / "step-000005" / UNET)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_interrupted_attack_resumes_to_the_same_weights(
    tiny_model: Path, pictures: Path, attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at step 4 (the last state was kept at 4 and its line logged), then resumed."""

    def stop(label: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(tiny_model, pictures, steps=(0, 2, 5), overrides=FAST, out=tmp_path / "run", progress=stop)
    attack(tiny_model, pictures, steps=(0, 2, 5), overrides=FAST, out=tmp_path / "run", resume=True)
    for part in ("step-000002", "step-000005"):
        assert same_weights(tmp_path / "run" / part, attacked / part)
    assert (tmp_path / "run" / "log.jsonl").read_text() == (attacked / "log.jsonl").read_text()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_other_optimizers(tiny_model: Path, pictures: Path, attacked: Path, tmp_path: Path, optimizer: str) -> None:
    attack(tiny_model, pictures, steps=(2,), overrides=[*FAST, f"optimizer={optimizer}"], out=tmp_path / "run")
    assert not same_weights(tmp_path / "run", attacked / "step-000002")


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
def test_a_decay_that_the_optimizer_has_not_is_refused(
    tiny_model: Path, pictures: Path, tmp_path: Path, optimizer: str
) -> None:
    said = [*FAST, f"optimizer={optimizer}", "weight_decay=0.1"]
    with pytest.raises(UserError, match=f"weight_decay .* because the attacker's optimizer is {optimizer}"):
        attack(tiny_model, pictures, steps=(2,), overrides=said, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_subset(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    attack(tiny_model, pictures, steps=(1,), overrides=[*FAST, "subset=x"], out=tmp_path / "run")
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "run" / UNET)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("attn2" in name for name in moved)


@pytest.mark.parametrize("steps", [(), (-1,), (5, 2), (3, 3)])
def test_wrong_steps_are_refused(tiny_model: Path, pictures: Path, tmp_path: Path, steps: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="ascending"):
        attack(tiny_model, pictures, steps=steps, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "levels", "overrides"),
    [
        ("textual-inversion", {"steps": (1,)}, ["initial_token=a", "templates=a {}", *FAST]),
        ("dreambooth", {"steps": (1,)}, ["instance_prompt=a sks", "class_prompt=a dog", "prior_images=2", *FAST]),
        ("img2img", {"strengths": (0.5,)}, ["prompt=a sks"]),
        ("inpaint", {"strengths": (0.5,)}, ["prompt=a sks"]),
    ],
)
def test_what_reads_no_captions_needs_none(
    tiny_model: Path, pictures: Path, tmp_path: Path, kind: str, levels: dict[str, Any], overrides: list[str]
) -> None:
    """The same as with captions; without the prompt in their place they are asked for."""
    plain = tmp_path / "plain"
    shutil.copytree(pictures, plain, ignore=shutil.ignore_patterns("metadata.jsonl"))
    made = []
    for name, data in (("plain", plain), ("captioned", pictures)):
        out = tmp_path / "out" / name
        attack(tiny_model, data, kind=kind, overrides=overrides, out=out, **levels)
        files = [file for file in sorted(out.rglob("*")) if file.suffix in {".safetensors", ".png"}]
        made.append({file.relative_to(out): file.read_bytes() for file in files})
    assert made[0]
    assert made[0] == made[1]
    if kind != "textual-inversion":
        with pytest.raises(UserError, match=r"no metadata\.jsonl"):
            attack(tiny_model, plain, kind=kind, overrides=overrides[1:], out=tmp_path / "refused", **levels)


def test_unknown_kind_and_subset_are_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'finetune'"):
        attack(tiny_model, pictures, kind="finetun", out=tmp_path / "run")
    with pytest.raises(UserError, match="ubset"):
        attack(tiny_model, pictures, overrides=["subset=y"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoints(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import metaunlearn.attacks.finetune as module

    whole = module.denoising_loss
    calls = iter(range(100))

    def breaks(*arguments: object) -> torch.Tensor:
        loss = whole(*arguments)  # type: ignore[arg-type]
        return loss * float("nan") if next(calls) == 3 else loss

    monkeypatch.setattr(module, "denoising_loss", breaks)
    with pytest.raises(RunError, match="step 4"):
        attack(tiny_model, pictures, steps=(0, 2, 5), overrides=FAST, out=tmp_path / "run")
    assert (tmp_path / "run" / "step-000002" / UNET).exists()
    assert not (tmp_path / "run" / "step-000005").exists()


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", 2 - 0.1 - 0.1),
        ("momentum", 2 - 0.1 - 0.1 * 1.9),
        ("adam", 2 - 0.1 - 0.1),
        ("adamw", (2 * (1 - 0.1 * 0.5) - 0.1) * (1 - 0.1 * 0.5) - 0.1),
    ],
)
def test_two_steps_along_a_gradient_of_one(optimizer: str, expected: float) -> None:
    """By hand from 2: Adam's steps are the learning rate's length; AdamW's decay comes before each."""
    said = [f"optimizer={optimizer}", "learning_rate=0.1", *(["weight_decay=0.5"] if optimizer == "adamw" else [])]
    assert two_steps("finetune", said) == pytest.approx(expected)


def test_textual_inversion_steps_by_its_scaled_learning_rate() -> None:
    """Of 2 x 3 pictures."""
    said = ["optimizer=sgd", "learning_rate=0.01", "batch_size=2", "accumulation=3", "scale_learning_rate=true"]
    assert two_steps("textual-inversion", said) == pytest.approx(2 - 2 * 0.06)


def two_steps(kind: str, said: list[str]) -> float:
    """Where two steps along x lead from x = 2."""
    x = torch.tensor(2.0, dtype=torch.float64)
    training = Training(trained={"x": x}, loss=lambda generator: 1.0 * x, write=lambda: None)
    run = Loop(training, configure(kind, read_recipe("small"), said).kind.settings, seed=0)
    run.run_to(2, None, lambda record: None)
    return x.item()
