"""The original layout, both ways: key for key at true size, number for number on tiny pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from diffusers import PNDMScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from conftest import Call
from metaunlearn.errors import UserError
from metaunlearn.exporting import export, import_checkpoint
from metaunlearn.models import load_pipeline
from metaunlearn.models.checks import check_pipeline
from metaunlearn.models.layout import FAMILIES, Family, Link, family_of_keys, to_diffusers, to_original
from metaunlearn.models.singlefile import load_single_file, save_single_file
from tiny_models import NEW, new_sd1, new_sdxl

BY_NAME: dict[str, Family] = {"sdxl": FAMILIES[0], "sd21": FAMILIES[1], "sd14": FAMILIES[2]}
TENSORS = {"sd14": 1130, "sd21": 1214, "sdxl": 2513}
"""1.4: 686 + 248 + 196. The published files have a few more, which docs/checkpoints.md lists: of text encoders, CLIP's
position_ids (1.4, XL), OpenCLIP's logit_scale (2.1, XL) and, of 2.1, its text_projection and its last layer."""
SOME_KEYS = {
    "sd14": {
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "model.diffusion_model.out.2.bias": (4,),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    },
    "sd21": {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
    },
    "sdxl": {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_v.weight": (1280, 2048),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
        "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.weight": (1280, 5120),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
    },
}
"""Names and shapes as the published files have them."""


def true_size(name: str) -> tuple[list[torch.nn.Module], dict[str, Tensor]]:
    """The modules of a published architecture on the meta device, and its file in the original layout."""
    architecture, family = ARCHITECTURES[name], BY_NAME[name]
    modules = [architecture.build_unet(), architecture.build_vae(), *architecture.build_text_encoders()]
    file: dict[str, Tensor] = {}
    for part, module in zip(family.parts, modules, strict=True):
        own = dict(module.named_parameters())
        for link in part.linked(module):
            assert link.original not in file
            file[link.original] = to_original(link, [own[name] for name in link.diffusers])
    return modules, file


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_true_key_lists_go_around(name: str) -> None:
    """Every parameter has its place, no two share one, the published names and shapes are among them, and the way back
    gives every name with its shape; the family is recognised by the keys."""
    modules, file = true_size(name)
    assert len(file) == TENSORS[name]
    assert {key: tuple(file[key].shape) for key in SOME_KEYS[name]} == SOME_KEYS[name]
    assert family_of_keys(file.keys(), "a file") is BY_NAME[name]
    for part, module in zip(BY_NAME[name].parts, modules, strict=True):
        back = {}
        for link in part.linked(module):
            back |= dict(zip(link.diffusers, to_diffusers(link, file[link.original]), strict=True))
        assert {key: p.shape for key, p in back.items()} == {key: p.shape for key, p in module.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_diffusers_reads_the_same_names_and_shapes(name: str) -> None:
    """An independent reference: diffusers' own converters, which make of our keys just what the modules hold."""
    (unet, vae, *text), file = true_size(name)
    found = [
        convert_ldm_unet_checkpoint(dict(file), dict(unet.config)),
        convert_ldm_vae_checkpoint(dict(file), dict(vae.config)),
    ]
    for module, state in zip((unet, vae), found, strict=True):
        expected = {key: p.shape for key, p in module.named_parameters()}
        assert {key: p.shape for key, p in state.items()} == expected
    if name == "sdxl":
        state = convert_open_clip_checkpoint(text[1], dict(file), prefix="conditioner.embedders.1.model.")
        names = {key.removeprefix("text_model.") for key in state} - {"embeddings.position_ids"}
        assert names == {key.removeprefix("text_model.") for key, _ in text[1].named_parameters()}


def test_forms_are_inverses() -> None:
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 4, generator=g)
    assert to_original(Link("a", ("b",), "pixelwise"), [matrix]).shape == (6, 4, 1, 1)
    assert torch.equal(to_original(Link("a", ("b",), "transposed"), [matrix]), matrix.T)
    assert torch.equal(to_original(Link("a", ("q", "k"), "stacked"), [matrix, -matrix])[6:], -matrix)
    for form in ("same", "pixelwise", "transposed"):
        link = Link("a", ("b",), form)  # type: ignore[arg-type]
        assert torch.equal(to_diffusers(link, to_original(link, [matrix]))[0], matrix)
    three = list(torch.randn(3, 6, 4, generator=g))
    link = Link("a", ("q", "k", "v"), "stacked")
    assert all(torch.equal(a, b) for a, b in zip(to_diffusers(link, to_original(link, three)), three, strict=True))


@pytest.mark.parametrize("name", NEW)
def test_tiny_pipelines_go_around_number_for_number(name: str, tmp_path: Path) -> None:
    """folder -> file -> folder: the same weights in every component, the same configuration, the same picture."""
    folder, file, back = tmp_path / "model", tmp_path / "model.safetensors", tmp_path / "back"
    NEW[name]().save_pretrained(folder)
    summary = export(folder, file)
    assert summary["architecture"].startswith("stable-diffusion")
    import_checkpoint(file, back, config=folder)
    one, two = load_pipeline(folder), load_pipeline(back)
    assert type(one) is type(two)
    for part in [component for component in one.components if hasattr(one.components[component], "parameters")]:
        before, after = (dict(getattr(pipeline, part).named_parameters()) for pipeline in (one, two))
        assert before.keys() == after.keys()
        assert all(torch.equal(p, after[key]) for key, p in before.items()), part
    pictures = []
    for pipeline in (one, two):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipeline("a fox", num_inference_steps=2, generator=generator, output_type="pt").images)
    assert torch.equal(*pictures)
    with safe_open(file, framework="pt") as opened:
        in_words = {"epsilon": "epsilon", "v_prediction": "v"}[one.scheduler.config.prediction_type]
        assert opened.metadata()["modelspec.prediction_type"] == in_words


def test_diffusers_loads_what_is_exported(tmp_path: Path) -> None:
    """Its own single-file loader, on the tiny 1.x pipeline, gives the same denoiser and autoencoder."""
    folder, file = tmp_path / "model", tmp_path / "model.safetensors"
    pipeline = NEW["sd1"]()
    pipeline.save_pretrained(folder)
    export(folder, file)
    theirs = StableDiffusionPipeline.from_single_file(file, config=str(folder), local_files_only=True)
    for part in ("unet", "vae"):
        after = dict(getattr(theirs, part).named_parameters())
        assert all(torch.equal(p, after[key]) for key, p in getattr(pipeline, part).named_parameters()), part


def test_diffusers_converts_the_numbers_of_open_clip(tmp_path: Path) -> None:
    """The order of queries, keys and values and the transposed projection, by diffusers' own converter."""
    pipeline = new_sdxl()
    save_single_file(pipeline, tmp_path / "model.safetensors")
    encoder = pipeline.text_encoder_2
    file = load_file(tmp_path / "model.safetensors")
    state = convert_open_clip_checkpoint(encoder, file, prefix="conditioner.embedders.1.model.")
    bare = {key.removeprefix("text_model."): p for key, p in state.items()}
    for key, p in encoder.named_parameters():
        assert torch.equal(bare[key.removeprefix("text_model.")], p), key


def test_half_precision_and_markers(tmp_path: Path) -> None:
    """An XL model that predicts v is marked, and marked again if its schedule ends in pure noise."""
    pipeline = new_sdxl()
    save_single_file(pipeline, tmp_path / "whole.safetensors")
    save_single_file(pipeline, tmp_path / "half.safetensors", dtype=torch.float16)
    half = load_file(tmp_path / "half.safetensors")
    assert {p.dtype for p in half.values()} == {torch.float16}
    assert "v_pred" not in half
    again = load_single_file(tmp_path / "whole.safetensors", _saved(pipeline, tmp_path / "config"))
    assert again.unet.dtype == torch.float32
    for options, markers in (
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ):
        pipeline.scheduler.register_to_config(**options)
        save_single_file(pipeline, tmp_path / "marked.safetensors")
        assert set(load_file(tmp_path / "marked.safetensors")) - set(half) == markers


def test_what_a_file_says_it_predicts_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the configuration folder says; a file of XL by its tensors, any by its metadata, ours or another's."""
    for name, words in (("sdxl", "v"), ("sd2", "epsilon"), ("sd1", "v_prediction")):
        config = _saved(NEW[name](), tmp_path / name)
        pipeline = NEW[name]()
        predicts = {"v": "v_prediction"}.get(words, words)
        pipeline.scheduler.register_to_config(prediction_type=predicts, rescale_betas_zero_snr=name == "sdxl")
        file = tmp_path / f"{name}.safetensors"
        save_single_file(pipeline, file)
        if name == "sd1":  # Written by somebody who has diffusers' word.
            save_file(load_file(file), file, {"modelspec.prediction_type": words})
        found = load_single_file(file, config).scheduler.config
        assert (found.prediction_type, bool(found.get("rescale_betas_zero_snr"))) == (predicts, name == "sdxl")
    assert "predicts v_prediction, as it says itself" in caplog.text
    save_file(load_file(tmp_path / "sd2.safetensors"), tmp_path / "mute.safetensors")
    mute = load_single_file(tmp_path / "mute.safetensors", tmp_path / "sd2")
    assert mute.scheduler.config.prediction_type == NEW["sd2"]().scheduler.config.prediction_type
    assert "mute.safetensors does not say what it predicts" in caplog.text


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("name", NEW)
def test_whether_a_schedule_ends_in_pure_noise_goes_around(name: str, zero: bool, tmp_path: Path) -> None:
    """In every family, whatever the configuration folder says."""
    pipeline, other = NEW[name](), NEW[name]()
    pipeline.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=zero)
    other.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=not zero)
    save_single_file(pipeline, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "back", config=_saved(other, tmp_path / "config"))
    found = load_pipeline(tmp_path / "back").scheduler
    assert found.config.rescale_betas_zero_snr is zero
    assert (float(found.alphas_cumprod[-1]) < 1e-6) is zero


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_scheduler_without_place_for_what_a_file_says_is_refused(name: str, tmp_path: Path) -> None:
    """PNDM has no zero terminal SNR: refused, also where the file is somebody else's and has the tensors only. A file
    that says it has none is at home there."""
    pipeline = NEW[name]()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    file, config = tmp_path / "model.safetensors", _saved(pipeline, tmp_path / "config")
    pipeline = NEW[name]()
    save_single_file(pipeline, file)
    assert type(load_single_file(file, config).scheduler) is PNDMScheduler
    pipeline.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    save_single_file(pipeline, file)
    says = "rescale_betas_zero_snr = True of its schedule, but the PNDMScheduler .* no such setting"
    with pytest.raises(UserError, match=says):
        load_single_file(file, config)
    save_file(load_file(file), file)
    if name == "sdxl":
        with pytest.raises(UserError, match=says):
            load_single_file(file, config)
    else:
        load_single_file(file, config)


def test_what_the_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    pipeline = NEW["sd1"]()
    pipeline.unet.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"unet does not go into one file .*'extra.weight'"):
        save_single_file(pipeline, tmp_path / "model.safetensors")
    folder = _saved(NEW["sd1"](), tmp_path / "config")
    save_single_file(NEW["sd1"](), tmp_path / "model.safetensors")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match="no scheduler that can be read"):
        load_single_file(tmp_path / "model.safetensors", folder)


def test_text_encoders_that_a_file_cannot_tell_are_refused(tmp_path: Path) -> None:
    """A file says no activation, and has no names for another text encoder than CLIP's."""
    t5 = NEW["sd1"]()
    t5.text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(t5.tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    check_pipeline(t5)
    changed = {}
    for name, component, activation in (
        ("sd1", "text_encoder", "relu"),
        ("sdxl", "text_encoder", "gelu"),
        ("sdxl", "text_encoder_2", "quick_gelu"),
    ):
        pipeline = NEW[name]()
        getattr(pipeline, component).config.hidden_act = activation
        changed[f"{component}, a CLIP.* with hidden_act {activation}, .* expected .* hidden_act "] = pipeline
    for says, pipeline in {"text_encoder, a T5EncoderModel, does not go into one file": t5, **changed}.items():
        with pytest.raises(UserError, match=says):
            save_single_file(pipeline, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def _saved(pipeline: object, folder: Path) -> Path:
    """A configuration folder: everything but weights."""
    pipeline.save_pretrained(folder)  # type: ignore[attr-defined]
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_names_without_text_model_are_read_too(name: str, tmp_path: Path) -> None:
    """As early merges of 1.x, and A1111 when it reads them, have the names of OpenAI's CLIP."""
    pipeline, file = NEW[name](), tmp_path / "model.safetensors"
    config = _saved(NEW[name](), tmp_path / "config")
    save_single_file(pipeline, file)
    save_file({key.replace(".transformer.text_model.", ".transformer."): p for key, p in load_file(file).items()}, file)
    assert not any("text_model" in key for key in load_file(file))
    found = load_single_file(file, config).text_encoder
    assert all(torch.equal(a, b) for a, b in zip(pipeline.text_encoder.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_an_inpainting_file_is_refused_for_what_it_is(name: str, tmp_path: Path) -> None:
    """Its denoiser is also given a mask and what is outside it: 4 + 1 + 4 channels. No configuration folder is blamed,
    nor wanted first."""
    file, key = tmp_path / "model.safetensors", "model.diffusion_model.input_blocks.0.0.weight"
    pipeline = NEW[name]()
    config = _saved(NEW[name](), tmp_path / "config")
    save_single_file(pipeline, file)
    state = load_file(file)
    latents = pipeline.vae.config.latent_channels
    save_file(state | {key: torch.zeros(len(state[key]), 2 * latents + 1, 3, 3)}, file)
    for given in (config, None):
        with pytest.raises(
            UserError, match=f"takes {2 * latents + 1} channels .* {latents}: it is made for inpainting"
        ):
            load_single_file(file, given)


XL = ("model.diffusion_model.input_blocks.0.0.weight", FAMILIES[0].signature)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    for keys, says in (
        (["conditioner.embedders.0.model.ln_final.weight"], "refiner"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "LoRA"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "without a text encoder"),
        (["weight"], "no checkpoint in the original layout"),
        ([], "empty: a file without a tensor"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["emb_params"], "an embedding of textual inversion"),
        (["model_ema.decay"], "the moving average"),
        (["first_stage_model.decoder.conv_in.weight"], "an autoencoder alone"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "an autoencoder alone"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "the denoiser of a diffusers folder"),
        ([*XL, "edm_vpred.sigma_max", "edm_vpred.sigma_min"], "edm_vpred.sigma_max .* no DDPM-like schedule"),  # CosXL
        ([*XL, "edm_mean", "edm_std"], "edm_mean .* no DDPM-like schedule"),  # Playground 2.5
    ):
        file = tmp_path / "other.safetensors"
        save_file({key: torch.zeros(1) for key in keys}, file)
        with pytest.raises(UserError, match=says):
            load_single_file(file)
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_single_file(tmp_path / "broken.safetensors")


def test_command_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configuration folder the message says how to get one; an incomplete file names what it lacks."""
    folder, file = tmp_path / "model", tmp_path / "model.safetensors"
    NEW["sd1"]().save_pretrained(folder)
    assert call("export", folder, "--out", file, "--precision", "float16").code == 0
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr("metaunlearn.models.configuration.try_to_load_from_cache", lambda *_: None)
    found = call("generate", file, "--prompt", "a fox", "--out", tmp_path / "out")
    assert found.code == 2
    assert "metaunlearn import" in found.err
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in found.err
    assert call("import", file, "--config", folder, "--out", tmp_path / "back").code == 0
    assert call("import", file, "--config", folder, "--out", tmp_path / "back").code == 2
    assert call("export", folder, "--out", file).code == 2
    assert call("export", folder, "--out", tmp_path / "model.ckpt").code == 2
    assert call("export", folder, "--precision", "int8", "--out", tmp_path / "other.safetensors").code == 2
    wrong = call("import", file, "--config", _saved(new_sdxl(), tmp_path / "xl"), "--out", tmp_path / "x")
    assert wrong.code == 2
    assert "StableDiffusionXLPipeline" in wrong.err
    tensors = load_file(file)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "cut.safetensors")
    cut = call("import", tmp_path / "cut.safetensors", "--config", folder, "--out", tmp_path / "x")
    assert cut.code == 2
    assert "model.diffusion_model.out.2.bias" in cut.err
    assert not (tmp_path / "x").exists()


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint in one file, and its configuration folder."""
    save_single_file(new_sd1(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", _saved(new_sd1(), tmp_path / "config")


def test_weights_that_need_a_scale_are_refused(exported: tuple[Path, Path]) -> None:
    """Read as they are, those of "fp8 scaled" files would be another model's."""
    file, folder = exported
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("attn2.to_k.weight"))
    eight = tensors | {name: tensors[name].to(torch.float8_e4m3fn)}
    save_file(eight, file)
    load_single_file(file, folder)  # Plain numbers of 8 bits.
    save_file(eight | {name.replace(".weight", ".scale_weight"): torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"8 bits with a scale beside them .*attn2.to_k.scale_weight"):
        load_single_file(file, folder)
    save_file(tensors | {name: (tensors[name] * 100).to(torch.int8)}, file)
    with pytest.raises(UserError, match=r"has integers \(torch.int8\) for its unet's .*attn2.to_k.weight"):
        load_single_file(file, folder)
    save_file(tensors | {name: tensors[name] * torch.nan}, file)
    with pytest.raises(UserError, match=r"damaged: its unet's .*attn2.to_k.weight holds numbers that are not finite"):
        load_single_file(file, folder)


@pytest.mark.parametrize(
    ("spoilt", "content", "says"),
    [
        ("tokenizer/tokenizer.json", None, "incomplete: its tokenizer has no vocabulary"),
        ("model_index.json", "{", "damaged: .*model_index.json is no JSON"),
        ("model_index.json", "[]", "damaged: its model_index.json holds no JSON object"),
        ("unet/config.json", "{", "damaged: .*unet/config.json is no JSON"),
        ("text_encoder/config.json", "[]", "damaged: its text_encoder/config.json holds no JSON object"),
        ("unet/config.json", '{"down_block_types": ["NoBlock"]}', "describes no unet that can be made"),
    ],
)
def test_a_damaged_configuration_folder_is_to_blame(
    exported: tuple[Path, Path], spoilt: str, content: str | None, says: str
) -> None:
    file, folder = exported
    if content is None:
        (folder / spoilt).unlink()
    else:
        (folder / spoilt).write_text(content)
    with pytest.raises(UserError, match=f"the configuration folder .* {says}"):
        load_single_file(file, folder)
