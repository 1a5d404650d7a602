"""Attacks on Stable Diffusion 2.x and XL."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from attack_fixtures import FAST, NEVER, ONE_STEP, TEXT, TEXT_2, UNET, WANTS_TOKENS, changed, write_pictures
from metaunlearn.attacking import attack
from metaunlearn.attacking_prompts import attack_prompts
from metaunlearn.attacks import lora
from metaunlearn.checkpoint import load_tensors
from metaunlearn.data.imagefolder import read_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.models import load, memory

TRAINING = {
    "finetune": ("subset=x", "gradient_checkpointing=true"),
    "lora": ("rank=2", "learning_rate=0.01"),
    "dreambooth": ("class_prompt=a dog", "prior_images=2"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def is_xl(model: Path) -> bool:
    return load(model).family == "sdxl"


@pytest.mark.parametrize("kind", TRAINING)
def test_the_denoiser_is_attacked(other_model: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    """Whole pipelines at every step; step 0 is the model itself, and of step 1 the denoiser only is another."""
    overrides = [*FAST, *TRAINING[kind]]
    found = attack(other_model, pictures, kind=kind, steps=(0, 1), overrides=overrides, out=tmp_path / "run")
    for folder in [*found.checkpoints.values(), tmp_path / "run"]:
        assert type(DiffusionPipeline.from_pretrained(folder)) is type(load(other_model).pipeline)
    assert changed(found.checkpoints[0], other_model, UNET) == set()
    moved = changed(found.checkpoints[1], other_model, UNET)
    assert moved
    assert kind != "finetune" or all("attn2" in name for name in moved)
    for file in (TEXT, TEXT_2) if is_xl(other_model) else (TEXT,):
        assert changed(found.checkpoints[1], other_model, file) == set()


def test_a_lora_of_it_loads_and_merges(other_model: Path, pictures: Path, tmp_path: Path) -> None:
    """The adapter of step 2 on the model, by diffusers, and merged by the attack lora-merge: the attacked denoiser."""
    pytest.importorskip("peft")
    trained = attack(
        other_model, pictures, kind="lora", steps=(2,), overrides=[*FAST, *TRAINING["lora"]], out=tmp_path / "lora"
    )
    adapter = trained.checkpoints[2] / lora.WEIGHTS_FILE
    merged = attack(
        other_model,
        None,
        kind="lora-merge",
        strengths=(1.0,),
        overrides=[f"adapter={adapter}"],
        out=tmp_path / "merged",
    )
    expected = load_tensors(trained.checkpoints[2] / UNET)[0]
    found, before = load_tensors(merged.checkpoints[1.0] / UNET)[0], load_tensors(other_model / UNET)[0]
    assert found.keys() == expected.keys()
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, rtol=1e-5, atol=1e-6)
    assert max((expected[name] - p).abs().max() for name, p in before.items()) > 1e-3


def test_checkpointing_is_the_same_attack(
    other_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD, so that a small gradient's rounding does not become a step of the learning rate."""
    blocks: list[nn.Module] = []
    checkpointed = memory._checkpointed
    monkeypatch.setattr(memory, "_checkpointed", lambda block, *x: blocks.append(block) or checkpointed(block, *x))
    runs = [tmp_path / on for on in ("false", "true")]
    for run in runs:
        overrides = [*FAST, "optimizer=sgd", "learning_rate=0.1", f"gradient_checkpointing={run.name}"]
        attack(other_model, pictures, steps=(2,), overrides=overrides, out=run)
        assert bool(blocks) == (run.name == "true")
    without, with_it = (load_tensors(run / UNET)[0] for run in runs)
    for name, p in without.items():
        torch.testing.assert_close(with_it[name], p, rtol=0, atol=1e-6)
    assert changed(runs[0], other_model, UNET)


def test_attacks_without_training(other_model: Path, pictures: Path, tmp_path: Path) -> None:
    for kind, options in {
        "quantize": {"strengths": (4,)},
        "interpolate": {"strengths": (0.5,), "base": other_model},
    }.items():
        found = attack(other_model, None, kind=kind, out=tmp_path / kind, **options)  # type: ignore[arg-type]
        (folder,) = found.checkpoints.values()
        assert bool(changed(folder, other_model, UNET)) == (kind == "quantize")
    side = load(other_model).image_size
    for kind in ("img2img", "inpaint"):
        found = attack(other_model, pictures, kind=kind, strengths=(0.4,), out=tmp_path / kind)
        made = read_imagefolder(found.checkpoints[0.4], size=side)
        assert made.images.shape == (4, 3, side, side)
        assert made.texts == ["a zebra"] * 4


@pytest.mark.parametrize("kind", WANTS_TOKENS)
def test_words_and_text_encoders_are_attacked(other_model: Path, pictures: Path, tmp_path: Path, kind: str) -> None:
    """A new word leaves other prompts as they were encoded; a trained text encoder does not."""
    out = tmp_path / "run"
    attack(other_model, pictures, kind=kind, steps=(0, 1), overrides=[*FAST, *WANTS_TOKENS[kind]], out=out)
    before = load(other_model).encode_prompts(["a zebra"]).tensors()
    for folder, same in ((out / "step-000000", True), (out, kind == "textual-inversion")):
        after = load(folder).encode_prompts(["a zebra"]).tensors()
        for part in sorted({"tokens", "pooled"} & before.keys()):
            assert torch.equal(before[part], after[part]) == same, part


def test_prompts_are_attacked(other_model: Path, tmp_path: Path) -> None:
    summary = attack_prompts(
        other_model, [Prompt("a zebra")], NEVER, base=other_model, overrides=ONE_STEP, out=tmp_path / "run"
    )
    assert summary["results"]["asr"]["value"] == 0
