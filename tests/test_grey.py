"""A pipeline whose autoencoder knows one channel goes through every command; its pictures are grey RGB."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import TINY_SIZE, Call
from metaunlearn.data.imagefolder import read_imagefolder
from metaunlearn.exporting import export
from metaunlearn.generation import Sampling, generate_images, write_sampling
from metaunlearn.models import adapt, load, load_pipeline
from metaunlearn.models.autoencoder import as_rgb, as_taken
from tiny_models import SIZES, new_sd1, new_vae

FAST = [
    f"--set={setting}"
    for setting in ("steps=1", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2")
]


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny Stable Diffusion 1.x around an autoencoder of one channel."""
    pipeline = new_sd1()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline.register_modules(vae=new_vae(SIZES["sd1"], in_channels=1, out_channels=1))
    folder = tmp_path_factory.mktemp("models") / "grey"
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=2, guidance_scale=2.0))
    return folder


def test_a_grey_pixel_is_the_mean_and_comes_back_three_times(grey: Path) -> None:
    """(0.2 + 0.4 + 0.9) / 3 = 0.5; an RGB autoencoder gets and gives its pictures as they are."""
    vae = load(grey).pipeline.vae
    colour = torch.tensor([0.2, 0.4, 0.9]).view(1, 3, 1, 1)
    taken = as_taken(vae, colour)
    torch.testing.assert_close(taken, torch.full((1, 1, 1, 1), 0.5))
    torch.testing.assert_close(as_rgb(taken), torch.full((1, 3, 1, 1), 0.5))
    assert as_taken(adapt(new_sd1()).pipeline.vae, colour) is colour
    assert as_rgb(colour) is colour


def test_pictures_are_grey_and_encode_alike(grey: Path) -> None:
    model = load(grey)
    images = generate_images(model.pipeline, ["a fox"], [0])
    assert images.shape == (1, 3, TINY_SIZE, TINY_SIZE)
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    mean, _ = model.encode_images(images * 2 - 1)
    turned, _ = model.encode_images(images.flip(1) * 2 - 1)
    torch.testing.assert_close(mean, turned)


def test_erase_attack_evaluate_report(grey: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    """An attack finetunes; img2img, which encodes and decodes inside diffusers, leaves pictures."""
    runs, prompts = tmp_path / "runs", tmp_path / "prompts.txt"
    prompts.write_text("a fox\n")
    erased, attacked, repainted = runs / "erased", runs / "attacked", tmp_path / "repainted"
    judged = ["--concept", "fox", "--alternative", "owl", "--judge", "canvas", "--metrics", "concept"]
    for arguments in (
        ["erase", grey, "--concept", "zebra", *FAST, "--set", "batch_size=2", "--out", erased],
        ["attack", erased, "--data", pictures, "--steps", "0,1", "--set", "batch_size=2", "--out", attacked],
        ["attack", erased, "--data", pictures, "--kind", "img2img", "--strengths", "1", "--out", repainted],
        ["evaluate", attacked / "step-000001", "--prompts", prompts, *judged, "--out", runs / "evaluated"],
        ["generate", attacked / "step-000001", "--prompt", "a fox", "--out", tmp_path / "drawn"],
        ["report", runs],
    ):
        outcome = call(*arguments)
        assert outcome.code == 0, outcome.err
    assert json.loads((runs / "evaluated/results.json").read_text())["concept"]["n"] == 1
    assert (runs / "report.html").is_file()
    for folder in (erased / "data/forget", repainted / "strength-1.00", tmp_path / "drawn"):
        image = read_imagefolder(folder, size=TINY_SIZE).images
        assert torch.equal(image[:, 0], image[:, 2])
    with Image.open(tmp_path / "drawn/000000.png") as opened:
        assert opened.mode == "RGB"


def test_a_file_of_a_grey_model_warns_of_programs_that_expect_colours(
    grey: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = load_pipeline(grey)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    export(pipeline, tmp_path / "grey.safetensors")
    assert "has an autoencoder of grey pictures and predicts the latent itself (sample)" in caplog.text
