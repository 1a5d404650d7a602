"""A pipeline's folder that is damaged is refused by the component's name, before anything is drawn with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPTokenizer

from conftest import Call
from metaunlearn.bench.identity import pipeline_identity
from metaunlearn.errors import UserError
from metaunlearn.models import adapt, load, load_pipeline
from metaunlearn.pipelines import save_pipeline
from tiny_judges import CHECKER_SIZE, new_checker
from tiny_models import NEW, new_sd1


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_a_tensor_that_is_missing_is_not_made_up(folder: Path, call: Call, tmp_path: Path, component: str) -> None:
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    lost = sorted(tensors)[3]
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    found = call("generate", folder, "--prompt", "a fox", "--out", tmp_path / "out")
    assert found.code == 2
    assert f"the weights of its {component} lack {lost}. Copy or download it again" in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("component", ["scheduler", "text_encoder", "tokenizer", "unet", "vae"])
def test_a_component_that_is_missing_is_named(folder: Path, component: str) -> None:
    kept = (folder / "unet").rename(folder / "elsewhere") if component == "unet" else folder / component
    shutil.rmtree(kept)
    says = "no weights of a denoiser" if component == "unet" else f"has a {component}, its folder has none"
    with pytest.raises(UserError, match=says):
        load_pipeline(folder)


def test_components_may_be_links_to_folders(folder: Path, tmp_path: Path) -> None:
    """As where several models share a store."""
    there = load_pipeline(folder).unet
    for component in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / component).rename(tmp_path / component)
        (folder / component).symlink_to(tmp_path / component)
    found = load_pipeline(folder).unet
    assert all(torch.equal(a, b) for a, b in zip(there.parameters(), found.parameters(), strict=True))


def test_a_grid_knows_weights_behind_links_to_folders(folder: Path, tmp_path: Path) -> None:
    """The same model as without links; another one when what the link leads to is."""
    plain = pipeline_identity(str(folder))
    (folder / "unet").rename(tmp_path / "unet")
    (folder / "unet").symlink_to(tmp_path / "unet")
    assert pipeline_identity(str(folder)) == plain
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert pipeline_identity(str(folder)) != plain


def test_a_tokenizer_without_a_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    says = "its tokenizer has no vocabulary, neither tokenizer.json nor vocab.json and merges.txt"
    with pytest.raises(UserError, match=says):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model_index.json", "[1]", "its model_index.json holds no JSON object"),
        ("model_index.json", "{", "model_index.json is no JSON"),
        ("model_index.json", '{"unet": ["diffusers"]}', "damaged: its model_index.json has .'diffusers'. for its unet"),
        (
            "model_index.json",
            '{"text_encoder": "CLIP"}',
            "damaged: its model_index.json has 'CLIP' for its text_encoder",
        ),
        (
            "model_index.json",
            '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], '
            '"vae": ["diffusers", "AutoencoderKL"], "text_encoder": [null, null]}',
            "has no text_encoder; load it with all of",
        ),
        ("unet/config.json", "{", "damaged: .*unet/config.json is no JSON: .* Copy or download it again"),
        ("unet/config.json", '{"quantization_config": {}}', "has its unet in few bits"),
        ("text_encoder/adapter_config.json", "{}", r"an adapter \(LoRA\) beside the weights of its text_encoder"),
        ("unet/config.json", "[]", "unet/config.json holds no JSON object"),
        ("scheduler/scheduler_config.json", "{", "scheduler_config.json is no JSON"),
        ("tokenizer/tokenizer_config.json", "{", "tokenizer_config.json is no JSON"),
        (
            "text_encoder/model.safetensors",
            "cut off",
            "its text_encoder cannot be loaded: .* Copy or download it again",
        ),
        ("unet/diffusion_pytorch_model.safetensors", "", "its unet cannot be loaded: .* Copy or download it again"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, file: str, content: str, says: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=says):
        load_pipeline(folder)


def test_what_a_mac_leaves_beside_is_passed_over(folder: Path) -> None:
    (folder / "unet" / "._config.json").write_bytes(b"\x00\x05\x16\x07\x00\xff")
    load_pipeline(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "block_out_channels": [16, 8]}))
    with pytest.raises(UserError, match="its vae cannot be loaded"):
        load_pipeline(folder)


def test_a_tokenizer_of_another_model() -> None:
    pipeline: Any = new_sd1()
    pipeline.tokenizer.add_tokens(["<more>"])
    with pytest.raises(UserError, match=r"tokenizer has \d+ tokens and its text_encoder knows \d+"):
        adapt(pipeline)


def test_what_is_saved_names_what_every_version_has(tmp_path: Path) -> None:
    """The feature extractor stays as it was named; the checker, which is not loaded, is not asked for."""
    source = new_sd1()
    extractor = CLIPImageProcessor(size={"shortest_edge": CHECKER_SIZE}, crop_size=CHECKER_SIZE)
    source.register_modules(feature_extractor=extractor, safety_checker=new_checker())
    source.register_to_config(requires_safety_checker=True)
    source.save_pretrained(tmp_path / "model")
    named = json.loads((tmp_path / "model" / "model_index.json").read_text())
    named["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(named))
    save_pipeline(load(tmp_path / "model"), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "model_index.json").read_text())
    without = {"safety_checker": [None, None], "requires_safety_checker": False}
    assert saved | {"_name_or_path": ""} == named | without | {"_name_or_path": ""}
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert again.feature_extractor.size == {"shortest_edge": CHECKER_SIZE}


@pytest.mark.parametrize("name", NEW)
def test_what_is_saved_is_read_by_transformers_4_too(name: str, tmp_path: Path) -> None:
    """It knows a CLIPTextModel by names that begin with text_model. alone, and a tokenizer by its two old files."""
    pipeline = NEW[name]()
    save_pipeline(adapt(pipeline), tmp_path / "out")
    encoders = ["text_encoder", "text_encoder_2"] if name == "sdxl" else ["text_encoder"]
    for encoder in encoders:
        saved = load_file(tmp_path / "out" / encoder / "model.safetensors")
        assert {key for key in saved if not key.startswith("text_model.")} <= {"text_projection.weight"}
        assert sum(tensor.numel() for tensor in saved.values()) == getattr(pipeline, encoder).num_parameters()
    for tokenizer in [encoder.replace("text_encoder", "tokenizer") for encoder in encoders]:
        folder = tmp_path / "out" / tokenizer
        two = CLIPTokenizer(
            vocab=json.loads((folder / "vocab.json").read_text()),
            merges=[tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]],
        )
        for text in ("a knife in noto style", "Zebra, zebra!"):
            assert two(text).input_ids == pipeline.tokenizer(text).input_ids
    again = load_pipeline(tmp_path / "out")
    for encoder in encoders:
        before, after = (dict(getattr(one, encoder).named_parameters()) for one in (pipeline, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(p, after[key]) for key, p in before.items())


def test_a_text_encoder_saved_beside_a_twin_has_its_published_names(tmp_path: Path) -> None:
    model = adapt(new_sd1())
    save_pipeline(model, tmp_path / "one")
    save_pipeline(model, tmp_path / "two", twin=tmp_path / "one", changed=("text_encoder", "tokenizer"))
    for file in ("text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    save_pipeline(load(tmp_path / "one"), tmp_path / "three")  # Read under these names, it keeps them.
    assert set(load_file(tmp_path / "three" / "text_encoder" / "model.safetensors")) == set(
        load_file(tmp_path / "one" / "text_encoder" / "model.safetensors")
    )


def renamed(folder: Path, prefix: str) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def test_names_that_something_went_before_say_what_it_was(folder: Path) -> None:
    renamed(folder, "_orig_mod.")
    with pytest.raises(UserError, match=r"lack conv_in.bias and .* saved from a compiled model"):
        load_pipeline(folder)


def test_a_tensor_without_a_place_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file({**load_file(file), "conv_in.lora_A.weight": torch.zeros(1)}, file, {"format": "pt"})
    load_pipeline(folder)
    assert "has 1 tensors in its unet that this class has no place for, such as conv_in.lora_A.weight" in caplog.text


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae"])
def test_weights_that_are_no_numbers_are_refused_at_once(folder: Path, component: str) -> None:
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    broken = sorted(tensors)[0]
    tensors[broken] = tensors[broken] * torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"damaged: its {component}'s .* holds numbers that are not finite"):
        load_pipeline(folder)


def test_a_saved_tokenizer_does_not_say_how_it_was_loaded(folder: Path, tmp_path: Path) -> None:
    before = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    save_pipeline(adapt(load_pipeline(folder)), tmp_path / "again")
    after = json.loads((tmp_path / "again" / "tokenizer" / "tokenizer_config.json").read_text())
    assert {*after} <= {*before}
