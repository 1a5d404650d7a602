"""Stable Diffusion 2.x and XL do what Stable Diffusion 1.x does: every command's function on tiny pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from conftest import TINY_SIZE
from metaunlearn import doctor
from metaunlearn.attacking import attack
from metaunlearn.checkpoint import load_tensors, save_tensors
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasing import erase
from metaunlearn.erasure.trajectories import TrajectoryBank, sample_trajectories
from metaunlearn.errors import UserError
from metaunlearn.evaluating import evaluate_into
from metaunlearn.generating import generate_into
from metaunlearn.models import StableDiffusion, StableDiffusionXL, load
from metaunlearn.recipe import default_recipe
from tiny_models import new_sd1, new_sd2, new_sdxl

UNET = "unet/diffusion_pytorch_model.safetensors"
FAST = ("steps=2", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2")


def moved(before: Path, after: Path) -> set[str]:
    a, b = load_file(before / UNET), load_file(after / UNET)
    assert a.keys() == b.keys()
    assert all(p.isfinite().all() for p in b.values())
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.parametrize("method", ["esd-x-1", "sdd", "rece"])
def test_every_kind_of_method_erases_with_the_meta_objective(other_model: Path, tmp_path: Path, method: str) -> None:
    """Only what is trained moves, and the folder is a pipeline of the same class that draws. Noise of the meta step is
    in double backward, so that no probe decides what is computed."""
    out = tmp_path / "out"
    more = ("meta_gradient=double-backward", *(("subset=x",) if method == "rece" else ()))
    erase(other_model, ["zebra"], method=method, overrides=[*FAST, *more], shared_overrides=True, out=out)
    assert moved(other_model, out)
    assert all("attn2" in name for name in moved(other_model, out))
    before, after = DiffusionPipeline.from_pretrained(other_model), DiffusionPipeline.from_pretrained(out)
    assert type(after) is type(before)
    assert after.scheduler.config == before.scheduler.config
    after.set_progress_bar_config(disable=True)
    assert after("a zebra", num_inference_steps=2, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("method", ["esd-2025", "uce", "uce-2025"])
def test_the_other_methods_erase_plainly(other_model: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "out"
    more = () if method.startswith("uce") else FAST
    erase(other_model, ["zebra"], method=method, meta=False, overrides=more, out=out)
    changed = moved(other_model, out)
    assert changed
    if method.startswith("uce"):
        assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in changed)


def test_attack_and_generate_with_grey_pictures(other_model: Path, pictures: Path, tmp_path: Path) -> None:
    Image.new("L", (50, 30), 128).save(pictures / "a.png")
    Image.new("I;16", (20, 30), 30_000).save(pictures / "b.png")
    found = attack(other_model, pictures, steps=(0, 2), overrides=["batch_size=2"], out=tmp_path / "out")
    assert not moved(other_model, found.checkpoints[0])
    assert moved(other_model, found.checkpoints[2])
    names = {entry.name for entry in other_model.iterdir()}
    assert names <= {entry.name for entry in found.checkpoints[2].iterdir()}
    summary = generate_into(str(found.checkpoints[2]), ["a zebra"], tmp_path / "drawn")
    side = load(other_model).image_size
    assert summary["image_size"] == [side, side]


def test_evaluate(other_model: Path, tmp_path: Path) -> None:
    """Canvas's judge looks at pictures of any size."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a fox\n")
    evaluate_into(
        str(other_model), prompts, out, metrics=["concept"], concept="a fox", alternatives=["an owl"], images=2
    )
    assert json.loads((out / "results.json").read_text())["concept"]["n"] == 2


def test_sdxl_conditions_as_its_pipeline_does() -> None:
    """What predict() computes at every step is what the pipeline's own sampling computes: same latents, bit for bit up
    to the order of sums, with guidance (zeros for nothing) and size conditioning."""
    model = StableDiffusionXL(new_sdxl())
    seen: list[tuple[torch.Tensor, ...]] = []

    def spy(module: object, args: tuple, kwargs: dict, output: tuple) -> None:
        cond = kwargs["added_cond_kwargs"]
        seen.append((args[0], args[1], kwargs["encoder_hidden_states"], cond["text_embeds"], cond["time_ids"]))

    handle = model.unet.register_forward_hook(spy, with_kwargs=True)
    model.pipeline.set_progress_bar_config(disable=True)
    model.pipeline("a fox on a hill", num_inference_steps=2, guidance_scale=3.0, output_type="latent")
    handle.remove()
    ours = Conditioning.cat([model.unconditional(), model.encode_prompts(["a fox on a hill"])])
    for _, _, tokens, pooled, time_ids in seen:
        assert torch.equal(tokens, ours.tokens)
        assert torch.equal(pooled, ours.pooled)
        assert torch.equal(time_ids, ours.time_ids)
    assert ours.tokens.shape == (2, 16, 24)
    assert ours.pooled.shape == (2, 12)
    assert ours.time_ids[0].tolist() == [TINY_SIZE, TINY_SIZE, 0, 0, TINY_SIZE, TINY_SIZE]
    assert not ours.tokens[0].any()
    assert model.encode_prompts([""]).tokens.any()


def test_sdxl_answers_to_each_part_of_its_conditioning() -> None:
    model = StableDiffusionXL(new_sdxl())
    theta, cond = model.parameters(), model.encode_prompts(["a fox"])
    x_t, t = torch.ones(1, *model.latent_shape), torch.tensor([500])
    parts = cond.tensors()
    whole = model.predict(theta, x_t, t, cond)
    for name, part in parts.items():
        other = Conditioning(**{**parts, name: part * 1.5 + 1})
        assert not torch.equal(model.predict(theta, x_t, t, other), whole), name


def test_nothing_is_the_empty_text_where_the_pipeline_says_so() -> None:
    pipeline = new_sdxl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    model = StableDiffusionXL(pipeline)
    assert torch.equal(model.unconditional().tokens, model.encode_prompts([""]).tokens)


def test_conditioning_behaves_like_a_batch() -> None:
    g = torch.Generator().manual_seed(0)
    whole = Conditioning(*(torch.randn(3, *shape, generator=g) for shape in ((4, 5), (6,), (6,))))
    rows = torch.tensor([2, 0])
    assert len(whole[rows]) == 2
    assert all(torch.equal(part[rows], whole[rows].tensors()[name]) for name, part in whole.tensors().items())
    again = Conditioning.cat([whole[:1], whole[1:]])
    assert all(torch.equal(part, again.tensors()[name]) for name, part in whole.tensors().items())
    assert whole[:1].expand(4).pooled.shape == (4, 6)  # type: ignore[union-attr]
    assert whole.to(torch.float16).time_ids.dtype == torch.float16  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="different families"):
        Conditioning.cat([whole, Conditioning(whole.tokens)])


def test_a_bank_comes_back_from_its_file(tmp_path: Path) -> None:
    model = StableDiffusionXL(new_sdxl())
    generator = torch.Generator().manual_seed(0)
    bank = sample_trajectories(
        model, model.parameters(), ["a fox", "an owl"], count=2, steps=2, guidance_scale=2.0, generator=generator
    )
    save_tensors(tmp_path / "bank.safetensors", bank.tensors())
    kept = load_tensors(tmp_path / "bank.safetensors")[0]
    again = TrajectoryBank.of_tensors(kept, "cpu")
    assert again.tensors().keys() == bank.tensors().keys()
    assert all(torch.equal(part, again.tensors()[name]) for name, part in bank.tensors().items())
    elsewhere = TrajectoryBank.of_tensors(kept, "meta").tensors()
    assert {name for name, part in elsewhere.items() if part.device.type == "cpu"} == {"prompt_of"}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_prediction_type_is_the_schedulers(kind: str) -> None:
    assert StableDiffusion(new_sd2(kind)).schedule.prediction_type == kind


def test_latents_of_an_autoencoder_that_says_how_they_are_spread() -> None:
    """(z - mean) / std x scaling_factor, the inverse of what the XL pipeline does before it decodes."""
    model = StableDiffusionXL(new_sdxl())
    images = torch.rand(2, 3, TINY_SIZE, TINY_SIZE) * 2 - 1
    plain_mean, plain_std = model.encode_images(images)
    model.pipeline.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0, 4.0, 5.0, 8.0])
    mean, std = model.encode_images(images)
    centre, spread = (
        torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None],
        torch.tensor([2.0, 4.0, 5.0, 8.0])[:, None, None],
    )
    torch.testing.assert_close(mean * spread + centre * 0.13, plain_mean)
    torch.testing.assert_close(std * spread, plain_std)


def test_the_pipeline_of_1_x_reads_no_spread_and_so_nobody_does() -> None:
    model = StableDiffusion(new_sd1())
    images = torch.rand(2, 3, TINY_SIZE, TINY_SIZE) * 2 - 1
    plain = model.encode_images(images)
    model.pipeline.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0, 4.0, 5.0, 8.0])
    assert all(torch.equal(a, b) for a, b in zip(plain, model.encode_images(images), strict=True))


def test_tokens_are_told_as_prompts_are_where_padding_is_masked() -> None:
    """diffusers hands a text encoder the mask when its configuration has ``use_attention_mask``."""
    model = StableDiffusion(new_sd1())
    prompts = ["a knife", "", "a dog and a cat"]
    plain = model.encode_prompts(prompts).tokens
    model.pipeline.text_encoder.config.use_attention_mask = True
    masked = model.encode_prompts(prompts).tokens
    assert (masked - plain).abs().max() > 1e-3
    torch.testing.assert_close(model.encode_tokens(model.token_ids(prompts)).tokens, masked)


def test_doctor_estimates_for_every_family(other_model: Path) -> None:
    job = doctor.estimate(other_model, speed=1e9)
    assert job.denoiser_parameters == load(other_model).parameter_count
    assert job.seconds > 0


def test_the_default_recipe_follows_size_and_class() -> None:
    assert default_recipe(5_000_000, 2048, "sdxl") == "small"
    assert default_recipe(859_520_964, 768, "sd") == "sd14"
    assert default_recipe(865_910_724, 1024, "sd") == "sd21"
    assert default_recipe(2_567_463_684, 2048, "sdxl") == "sdxl"


def test_a_callers_xl_pipeline_stays_as_it_is() -> None:
    pipeline = new_sdxl()
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    result = erase(pipeline, ["zebra"], method="uce", meta=False)
    assert all(torch.equal(p, before[name]) for name, p in pipeline.unet.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in result.pipeline.unet.named_parameters())
    assert result.pipeline.config["force_zeros_for_empty_prompt"]


def test_two_tokenizers_that_disagree_are_refused_by_closed_forms() -> None:
    pipeline = new_sdxl()
    # Without merges every letter is a token.
    pipeline.tokenizer_2 = CLIPTokenizer(vocab=pipeline.tokenizer.get_vocab(), merges=[], model_max_length=16)
    with pytest.raises(UserError, match=r"tokenizer, tokenizer_2.*esd-x-1"):
        erase(pipeline, ["knife"], method="uce", meta=False)


def test_run_record_names_the_recipe(other_model: Path, tmp_path: Path) -> None:
    erase(other_model, ["zebra"], method="uce-2025", meta=False, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["request"]["recipe"] == "small"


def test_equal_prompts_are_encoded_once_and_each_has_its_own() -> None:
    model = StableDiffusion(new_sd1())
    prompts = ["a fox", "a dog", "a fox", "a fox", "a cat", "a dog"]
    each = torch.cat([model.encode_prompts([prompt]).tokens for prompt in prompts])
    torch.testing.assert_close(model.encode_prompts(prompts).tokens, each)


def test_a_picture_of_a_set_has_its_own_prompt() -> None:
    """Two pictures share the first text, so that neither row nor number of a prompt is that of its picture."""
    model = StableDiffusion(new_sd1())
    texts = ["a fox", "a fox", "a dog", "a cat"]
    data = LatentSet.encode(model, torch.zeros(4, 3, TINY_SIZE, TINY_SIZE), texts)
    rows = torch.tensor([3, 1, 2, 0])
    drawn = data.batch(rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.cond.tokens, model.encode_prompts([texts[row] for row in rows]).tokens)
