"""Pictures are diffusers' own, and making them leaves the pipeline as it was."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPImageProcessor

from metaunlearn.data.imagefolder import read_imagefolder, to_uint8
from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import DrawSettings, draw_batch, draw_into, draws_for
from metaunlearn.fetching import SAMPLING_FILE
from metaunlearn.files import read_json
from metaunlearn.generation import Sampling, generate_images, write_sampling
from metaunlearn.models import load, rebuilt
from metaunlearn.models.memory_format import channels_last
from tiny_judges import CHECKER_SIZE, new_checker
from tiny_models import NEW, with_unet


@torch.no_grad()
def test_pictures_are_those_of_diffusers(tiny_model: Path) -> None:
    pipeline = load(tiny_model).pipeline
    wanted = pipeline(
        ["a dog", "a cat"],
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="pt",
    ).images
    found = generate_images(pipeline, ["a dog", "a cat"], [3, 4])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (to_uint8(found).int() - to_uint8(wanted).int()).abs().max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("name", NEW)
def test_oblong_pictures(name: str) -> None:
    """XL's pipeline can draw them only when it is told height and width, which it then tells the denoiser. Square ones
    are bit for bit those that it draws when it is told nothing."""
    for latent, (height, width) in ((12, (24, 24)), ([12, 16], (24, 32)), ([16, 8], (32, 16))):
        pipeline = with_unet(NEW[name], sample_size=latent)
        if name == "sdxl":
            pipeline = rebuilt(pipeline)  # diffusers takes its default size when a pipeline is made.
        found = generate_images(pipeline, ["a dog", "a cat"], [3, 4], steps=2, guidance_scale=2.0)
        assert found.shape == (2, 3, height, width)
        size = {} if isinstance(latent, int) else {"height": height, "width": width}
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        with channels_last([pipeline.unet, pipeline.vae]):
            wanted = pipeline(
                ["a dog", "a cat"], num_inference_steps=2, guidance_scale=2.0, generator=generators, output_type="pt",
                **size,
            ).images  # fmt: skip
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("fails", [False, True])
def test_kernels_lie_channels_last_only_while_it_draws(tiny_model: Path, fails: bool) -> None:
    pipeline = load(tiny_model).pipeline
    kernels = [p for part in (pipeline.unet, pipeline.vae) for p in part.parameters() if p.dim() == 4]
    spread = [p for p in kernels if p.shape[1] > 1 and p.shape[2] > 1]
    before = [p.clone() for p in kernels]

    def look(done: int, total: int) -> None:
        assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in spread)
        if fails:
            raise InterruptedError

    if fails:
        with pytest.raises(InterruptedError):
            generate_images(pipeline, ["a dog"], [3], progress=look)
    else:
        generate_images(pipeline, ["a dog"], [3], progress=look)
    assert spread
    assert all(p.is_contiguous() for p in kernels)
    assert all(torch.equal(p, q) for p, q in zip(kernels, before, strict=True))


def test_a_safety_checker_that_flags_everything_blackens_nothing(tiny_model: Path) -> None:
    checker = new_checker()
    checker.concept_embeds_weights.data.fill_(-2.0)
    extractor = CLIPImageProcessor(size={"shortest_edge": CHECKER_SIZE}, crop_size=CHECKER_SIZE)
    pipeline = load(tiny_model).pipeline
    watched = StableDiffusionPipeline(
        **pipeline.components | {"safety_checker": checker, "feature_extractor": extractor}
    )
    names = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    assert not watched("a dog", generator=torch.Generator().manual_seed(3), **names).images.any()
    options = {"steps": 3, "guidance_scale": 2.0}
    drawn = generate_images(watched, ["a dog"], [3], **options)
    assert torch.equal(drawn, generate_images(pipeline, ["a dog"], [3], **options))
    assert drawn.any()
    assert watched.safety_checker is checker
    assert watched.config.safety_checker[1] == "StableDiffusionSafetyChecker"


@pytest.mark.parametrize("sampling", [Sampling(steps=20), Sampling(guidance_scale=2.0)])
def test_a_folder_says_what_is_not_usual(tmp_path: Path, sampling: Sampling) -> None:
    """Of either setting; the usual ones need no file."""
    write_sampling(tmp_path, Sampling())
    assert not (tmp_path / SAMPLING_FILE).exists()
    write_sampling(tmp_path, sampling)
    assert Sampling(**read_json(tmp_path / SAMPLING_FILE)) == sampling


def test_guidance_alone_is_written_down_too(tmp_path: Path) -> None:
    write_sampling(tmp_path, Sampling(guidance_scale=3.0))
    assert read_json(tmp_path / SAMPLING_FILE) == {"steps": 50, "guidance_scale": 3.0}


def test_a_batch_is_drawn_in_the_precision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def generate(_: Any, texts: list[str], seeds: list[int], **options: Any) -> torch.Tensor:
        asked.append((options["precision"], options["batch_size"], seeds))
        return torch.zeros(len(texts), 3, 8, 8)

    monkeypatch.setattr("metaunlearn.draws.generate_images", generate)
    draws = draws_for([Prompt("a dog")], images=3, seed=5, guidance_scale=2.0)
    draw_batch(None, draws, [1, 2], settings=DrawSettings(precision="bf16"))
    assert asked == [("bf16", 2, [6, 7])]


def test_a_set_is_drawn_in_the_steps_and_settings_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch has one guidance; the pictures lie in the order of their draws all the same."""
    asked: list[Any] = []

    def generate(_: Any, texts: list[str], seeds: list[int], **options: Any) -> torch.Tensor:
        asked.append((texts, seeds, options["guidance_scale"], options["steps"], options["precision"]))
        return torch.stack([torch.full((3, 8, 8), seed / 255) for seed in seeds])

    monkeypatch.setattr("metaunlearn.draws.generate_images", generate)
    prompts = [Prompt("a", seed=7), Prompt("b", guidance_scale=1.0), Prompt("c", seed=9)]
    draws = draws_for(prompts, images=1, seed=20, guidance_scale=2.0)
    pipeline = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(sample_size=2)), vae_scale_factor=4)
    settings = DrawSettings(picture_batch=2, precision="bf16")
    draw_into(tmp_path / "set", pipeline, draws, finished=tmp_path / "done", steps=5, settings=settings)
    assert asked == [(["a", "c"], [7, 9], 2.0, 5, "bf16"), (["b"], [21], 1.0, 5, "bf16")]
    found = read_imagefolder(tmp_path / "set", size=8)
    assert found.texts == ["a", "b", "c"]
    assert ((found.images[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [7, 21, 9]
