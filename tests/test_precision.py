"""The precision of drawing and of attacks: reduced inside the denoiser, float32 outside, and in every protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import UNET, Call
from metaunlearn.conditioning import Conditioning
from metaunlearn.generation import generate_images
from metaunlearn.models import TextToImageModel, load
from metaunlearn.models.precision import GRADIENT_SCALE, autocast_predict, denoising_in, teachers_answer
from metaunlearn.parameters import Params


@pytest.fixture
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_products_are_reduced_in_the_denoiser_only(model: TextToImageModel, precision: Any) -> None:
    """Linear layers of the denoiser see half precision; what it answers, and the autoencoder, float32."""
    seen: dict[str, set[torch.dtype]] = {"inside": set(), "outside": set()}
    unet, vae = model.pipeline.unet, model.pipeline.vae
    inside = unet.conv_out.register_forward_hook(lambda module, inputs, output: seen["inside"].add(output.dtype))
    outside = [
        part.register_forward_hook(lambda module, inputs, output: seen["outside"].add(output.dtype))
        for part in (vae.decoder.conv_in, vae.decoder.conv_out)
    ]
    plain = generate_images(model.pipeline, ["a dog"], [3])
    assert seen == {"inside": {torch.float32}, "outside": {torch.float32}}
    seen["inside"].clear()
    reduced = generate_images(model.pipeline, ["a dog"], [3], precision=precision)
    for hook in (inside, *outside):
        hook.remove()
    assert seen == {
        "inside": {torch.bfloat16 if precision == "bf16" else torch.float16}, "outside": {torch.float32},
    }  # fmt: skip
    assert 0 < (reduced - plain).abs().max() < 0.1
    assert torch.equal(generate_images(model.pipeline, ["a dog"], [3]), plain), "the pipeline is as it was"


def test_tf32_is_switched_on_and_off(model: TextToImageModel) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with denoising_in(model.unet, "tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_score_says_how_it_was_drawn(tiny_model: Path, tmp_path: Path, call: Call) -> None:
    """Steps and guidance as asked for; float32 goes without saying, and other scores do not stand beside it."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,evaluation_guidance\na fox,5\n")
    asked = ["--prompts", prompts, "--metrics", "concept", "--concept", "fox", "--judge", "canvas"]
    found = {}
    for name, more in {
        "plain": [], "again": ["--steps", "2", "--guidance", "1.5"], "half": ["--set", "precision=bf16"],
    }.items():  # fmt: skip
        outcome = call("evaluate", tiny_model, *asked, *more, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
        found[name] = json.loads((tmp_path / name / "results.json").read_text())["concept"]["protocol"]
    assert "precision" not in found["plain"]
    assert found["half"] == {**found["plain"], "precision": "bf16"}
    assert (found["again"]["steps"], found["again"]["guidance_scale"]) == (2, 1.5)
    assert found["plain"]["steps"] == 3
    assert "precision" in call("table", tmp_path / "plain", tmp_path / "half").err
    refused = call("evaluate", tiny_model, *asked, "--set", "precision=int8", "--out", tmp_path / "refused")
    assert (refused.code, "precision" in refused.err) == (2, True)


def test_generate_takes_a_precision(tiny_model: Path, tmp_path: Path, call: Call) -> None:
    for name, more in {"plain": [], "half": ["--set", "precision=bf16"]}.items():
        assert call("generate", tiny_model, "--prompt", "a dog", *more, "--out", tmp_path / name).code == 0
    assert json.loads((tmp_path / "half/run.json").read_text())["request"]["settings"]["precision"] == "bf16"


@pytest.mark.parametrize("kind", ["finetune", "lora"])
def test_attacks_train_in_a_precision(tiny_model: Path, pictures: Path, tmp_path: Path, call: Call, kind: str) -> None:
    """After two steps the weights are float32 and near those of the attack in float32, but not the same."""
    weights = {}
    for precision in ("float32", "tf32", "bf16"):
        outcome = call(
            "attack", tiny_model, "--kind", kind, "--data", pictures, "--steps", "2", "--out", tmp_path / precision,
            "--set", f"precision={precision}", "--set", "batch_size=2", "--set", "learning_rate=1e-3",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        weights[precision] = load_file(tmp_path / precision / "step-000002" / UNET)
    assert {p.dtype for p in weights["bf16"].values()} == {torch.float32}
    apart = {
        name: max((p - weights["float32"][key]).abs().max() for key, p in them.items())
        for name, them in weights.items()
    }
    assert apart["tf32"] == 0  # A CPU knows none.
    assert 0 < apart["bf16"] < 1e-2


def test_gradients_scaled_for_half_precision_come_out_as_they_are() -> None:
    """Element-wise arithmetic is not reduced, so what is left is the scale, with respect to all that is asked of."""
    g = torch.Generator().manual_seed(0)
    theta = {"w": torch.randn(2, 4, generator=g)}
    x_t, tokens, pooled = (torch.randn(2, 4, generator=g) for _ in range(3))

    def predict(theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        assert cond.pooled is not None
        return theta["w"] * x_t * cond.tokens + cond.pooled**2

    def gradients(*, reduced: bool) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (theta["w"], x_t, tokens, pooled)]
        w, x, of_tokens, of_pooled = leaves
        asked = ({"w": w}, x, torch.zeros(2), Conditioning(of_tokens, of_pooled))
        output = autocast_predict(predict, torch.float16, *asked) if reduced else predict(*asked)
        return list(torch.autograd.grad(output.square().sum(), leaves))

    for found, expected in zip(gradients(reduced=True), gradients(reduced=False), strict=True):
        torch.testing.assert_close(found, expected)
    assert GRADIENT_SCALE[torch.float16] > 1


def test_a_teacher_in_half_precision_is_told_sizes_exactly() -> None:
    seen: list[Conditioning] = []

    def predict(theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        seen.append(cond)
        return x_t

    cond = Conditioning(torch.zeros(1, 2, 3), torch.zeros(1, 4), torch.full((1, 6), 1025.0))
    answer = teachers_answer(predict, {"w": torch.zeros(1).bfloat16()}, torch.zeros(1, 4, 2, 2), torch.zeros(1), cond)
    (told,) = seen
    assert told.pooled is not None
    assert told.time_ids is not None
    assert (told.tokens.dtype, told.pooled.dtype, answer.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert told.time_ids.tolist() == [[1025.0] * 6]
