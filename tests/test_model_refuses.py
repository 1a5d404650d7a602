"""Pipelines that cannot work: exit code 2, and a message that says what is missing, before any work."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMInverseScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from conftest import Call
from metaunlearn.errors import UserError
from metaunlearn.models import adapt
from metaunlearn.models.loading import load_pipeline
from metaunlearn.models.variants import choose_variant
from tiny_models import new_sd1, new_sdxl, new_vae, shorter, text_config, with_unet


def without(pipeline: Any, *parts: str) -> Any:
    for part in parts:
        setattr(pipeline, part, None)
    return pipeline


def with_rgba() -> Any:
    pipeline = new_sd1()
    pipeline.vae = new_vae(32, in_channels=4, out_channels=4)
    return pipeline


def with_tiny_autoencoder() -> Any:
    pipeline = new_sd1()
    pipeline.vae = AutoencoderTiny(latent_channels=pipeline.vae.config.latent_channels)
    return pipeline


def with_adapter(component: str, layer: str) -> Any:
    pipeline = new_sd1()
    getattr(pipeline, component).add_adapter(LoraConfig(r=2, target_modules=[layer]))
    return pipeline


def with_scheduler(**options: Any) -> Any:
    pipeline = new_sd1()
    pipeline.scheduler.register_to_config(**options)
    return pipeline


def drawn_by(kind: Any, **options: Any) -> Any:
    pipeline = new_sd1()
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **options)
    return pipeline


def with_two_tables() -> Any:
    """A denoiser of two cross-attentions a block, as diffusers itself cannot run it."""
    pipeline = new_sd1()
    pipeline.unet.register_to_config(dual_cross_attention=True)
    return pipeline


def with_long_prompts(length: int = 1000) -> Any:
    pipeline = new_sd1()
    pipeline.tokenizer.model_max_length = length
    return pipeline


def with_second_encoder(kind: Any, **options: Any) -> Any:
    """The tiny XL pipeline with a second text encoder of another class, or of other options."""
    pipeline = new_sdxl()
    config = text_config(pipeline.tokenizer_2, 16, layers=2, hidden_act="gelu", **options)
    pipeline.text_encoder_2 = kind(config)
    return pipeline


def with_two_lengths() -> Any:
    pipeline = new_sdxl()
    pipeline.tokenizer_2 = shorter(copy.deepcopy(pipeline.tokenizer_2), 12)
    return pipeline


def inpainting() -> Any:
    parts = {**new_sd1().components, "image_encoder": None}
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def refiner() -> Any:
    parts = new_sdxl().components
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    return StableDiffusionXLImg2ImgPipeline(
        **{**parts, "text_encoder": None, "tokenizer": None}, requires_aesthetics_score=True, add_watermarker=False
    )


TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 12 + 6 * 4,
}
NO_CROSS_ATTENTION = {
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: without(new_sd1(), "tokenizer"), "no tokenizer"),
        (lambda: without(new_sdxl(), "text_encoder_2", "vae"), "no vae and no text_encoder_2"),
        (lambda: without(new_sdxl(), "text_encoder"), "has no text_encoder"),
        (refiner, "refiner"),
        (inpainting, "starts from a picture"),
        (lambda: with_unet(in_channels=9), "takes 9 channels but its latents have 4"),
        (lambda: with_unet(time_cond_proj_dim=8), "distilled"),
        (lambda: with_unet(out_channels=8), r"takes 4 channels and gives 8: .*learned variance"),
        (lambda: with_unet(sample_size=15), r"pictures of 30 pixels, .* sides that 8 divides .* to 12\."),
        (lambda: with_unet(sample_size=(16, 15)), r"pictures of 32 x 30 pixels, .* to \[16, 12\]\."),
        (lambda: with_unet(**NO_CROSS_ATTENTION), "no cross-attention"),
        (with_rgba, "autoencoder takes pictures of 4 channels"),
        (with_tiny_autoencoder, "autoencoder is a AutoencoderTiny"),
        (lambda: with_adapter("unet", "to_k"), r"MODEL's unet has an adapter \(LoRA\)"),
        (lambda: with_adapter("text_encoder", "q_proj"), r"MODEL's text_encoder has an adapter \(LoRA\)"),
        (lambda: with_unet(sample_size=None), "how large its latents are"),
        (lambda: with_unet(num_class_embeds=10), r"a class .* \(class_embed_type=None, num_class_embeds=10\)"),
        (lambda: with_unet(class_embed_type="timestep"), r"\(class_embed_type=timestep, num_class_embeds=None\)"),
        (lambda: with_unet(**TEXT_TIME), r"more than tokens \(addition_embed_type=text_time; expected None or text\)"),
        (
            lambda: with_unet(encoder_hid_dim_type="text_image_proj", encoder_hid_dim=16, cross_attention_dim=16),
            "reads pictures beside its prompts .*text_image_proj",
        ),
        (
            lambda: with_unet(encoder_hid_dim_type="text_proj", encoder_hid_dim=20),
            "give 16 numbers a token and its denoiser takes 20",
        ),
        (lambda: with_unet(cross_attention_dim=(16, 24)), "give 16 numbers a token and its denoiser takes 16 and 24"),
        (lambda: with_unet(cross_attention_dim=24), "give 16 numbers a token and its denoiser takes 24"),
        (with_long_prompts, "cuts prompts at 1000 tokens and its text_encoder has places for"),
        (lambda: with_second_encoder(CLIPTextModel), "text_encoder_2 is a CLIPTextModel, .* CLIPTextModelWithProj"),
        (with_two_lengths, "tokenizer cuts and fills prompts to 16 tokens and its tokenizer_2 to 12, .* both to 12"),
        (
            lambda: with_second_encoder(CLIPTextModelWithProjection, projection_dim=20),
            r"takes 36 numbers .* \(addition_embed_type=text_time\); expected text_time and 44: 20 .* and 24 of sizes",
        ),
        (lambda: with_unet(new_sdxl, addition_embed_type=None), r"\(addition_embed_type=None\); expected text_time"),
        (lambda: with_scheduler(prediction_type="flow"), "scheduler predicts 'flow'"),
        (lambda: with_scheduler(num_train_timesteps=20), r"20 timesteps .* and 1000 noise levels \(trained_betas\)"),
        (
            lambda: drawn_by(DDPMScheduler, variance_type="learned_range"),
            r"\(variance_type=learned_range\).*fixed_small",
        ),
        (lambda: drawn_by(DDIMInverseScheduler), "DDIMInverseScheduler cannot draw .* no add_noise"),
        (lambda: drawn_by(UnCLIPScheduler, prediction_type="epsilon"), "UnCLIPScheduler cannot draw .* no order"),
        (lambda: drawn_by(UniPCMultistepScheduler, use_flow_sigmas=True), "a flow's noise levels"),
        (lambda: drawn_by(EulerDiscreteScheduler, rescale_betas_zero_snr=True), "ends in pure noise .* but predicts"),
        (lambda: with_unet(attention_type="gated"), "takes boxes beside its prompts"),
        (with_two_tables, "two cross-attentions in each block"),
        (lambda: with_unet(sample_size="16"), "latents' side is '16'"),
        (lambda: with_unet(sample_size=0), "latents' side is 0"),
        (lambda: with_long_prompts(10**30), "does not say where it cuts prompts"),
        (object, "MODEL is a object, which has no adapter"),
    ],
)
def test_pipelines_that_cannot_work(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        adapt(make())


def test_folders_are_refused_by_their_index_alone(call: Call, tmp_path: Path) -> None:
    """Nothing but model_index.json lies there, so nothing else can have been read."""
    for index, says in (
        ({"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}, "refiner"),
        ({"_class_name": "StableDiffusionDepth2ImgPipeline"}, "starts from a picture"),
        ({"_class_name": "StableDiffusionPipeline"}, "no weights of a denoiser"),
        ({}, "pipeline without a class"),
    ):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        found = call("erase", tmp_path / "model", "--concept", "a fox", "--out", tmp_path / "out")
        assert found.code == 2
        assert says in found.err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_pickles_is_refused(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    found = call("generate", folder, "--prompt", "a fox", "--out", tmp_path / "out")
    assert found.code == 2
    assert "as a pickle only (unet/diffusion_pytorch_model.bin)" in found.err


def test_half_precision_variants_are_found_and_cast(tmp_path: Path) -> None:
    """A folder with the fp16 variant only, as many are shared; beside plain weights it is not read."""
    pipeline = new_sdxl()
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    found = load_pipeline(tmp_path / "model")
    assert {str(p.dtype) for p in found.unet.parameters()} == {"torch.float32"}
    name = "unet/diffusion_pytorch_model"
    assert choose_variant([f"{name}.fp16.safetensors", f"{name}.safetensors"], "m") is None
    assert choose_variant([f"{name}.fp16.safetensors"], "m") == "fp16"
    assert choose_variant([f"{name}.fp16-00001-of-00002.safetensors"], "m") == "fp16"
    assert choose_variant([f"{name}-00001-of-00002.safetensors"], "m") is None
    with pytest.raises(UserError, match="no variant that is known"):
        choose_variant([f"{name}.int4.safetensors"], "m")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_every_component_has_a_variant_of_its_own(variant: str, component: str, tmp_path: Path) -> None:
    """One in half precision among plain ones, whichever it is; the others' numbers are the plain ones."""
    pipeline = new_sdxl()
    pipeline.save_pretrained(tmp_path / "model")
    plain = load_pipeline(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / component)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[variant]
    getattr(pipeline, component).to(dtype).save_pretrained(tmp_path / "model" / component, variant=variant)
    found = load_pipeline(tmp_path / "model")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for a, b in zip(getattr(plain, name).parameters(), getattr(found, name).parameters(), strict=True):
            assert torch.equal(a.to(dtype).float() if name == component else a, b)


def test_a_component_as_a_pickle_only_is_named(tmp_path: Path) -> None:
    new_sd1().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"has its text_encoder as a pickle only \(text_encoder/pytorch_model.bin\)"):
        load_pipeline(tmp_path / "model")
    weights.with_name("pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no weights of a text_encoder: expected text_encoder/model\.safetensors"):
        load_pipeline(tmp_path / "model")


def test_a_hub_id_without_a_network_says_how_to_fetch_it(call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    class Nobody:
        def model_info(self, *_: Any, **__: Any) -> None:
            raise OSError("no route to host")

    monkeypatch.setattr("metaunlearn.models.loading.HfApi", Nobody)
    found = call("erase", "somebody/some-model", "--concept", "a fox", "--out", tmp_path / "out")
    assert found.code == 2
    assert "hf download somebody/some-model" in found.err
    assert "no route to host" in found.err


def test_a_hub_model_with_pickles_only_is_not_downloaded(call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    class Hub:
        def model_info(self, *_: Any, **__: Any) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(siblings=[SimpleNamespace(rfilename="unet/diffusion_pytorch_model.bin")])

    monkeypatch.setattr("metaunlearn.models.loading.HfApi", Hub)
    found = call("erase", "somebody/some-model", "--concept", "a fox", "--out", tmp_path / "out")
    assert found.code == 2
    assert "pickle" in found.err
