"""How many pictures go through a pipeline and its autoencoder at once: memory, and no picture, depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor

from conftest import TINY_SIZE, Call
from metaunlearn import canvas, doctor
from metaunlearn.attacks.from_pictures import repainted
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.imagefolder import read_imagefolder, to_uint8
from metaunlearn.doctor.drawing import autoencoder_peaks, drawing_facts
from metaunlearn.erasure.prepare import own_pictures
from metaunlearn.generation import generate_images, picture_size, pictures_at_once
from metaunlearn.models import TextToImageModel, adapt, autoencoder, load, rebuilt
from metaunlearn.models.autoencoder import decoded_at_once, encoded_at_once
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve
from tiny_models import new_sd1, new_sdxl, with_unet

PROMPTS = ["a dog", "a cat", "a fox", "an owl", "a bus"]


@pytest.fixture
def model(tiny_model: Path) -> TextToImageModel:
    return load(tiny_model)


def watch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """The sizes of the batches with which ``module.name`` is called from now on."""
    sizes: list[int] = []
    inner = getattr(module, name)

    def watched(batch: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(batch))
        return inner(batch, *arguments, **options)

    monkeypatch.setattr(module, name, watched)
    return sizes


def sized(model: TextToImageModel, side: int | list[int]) -> Any:
    """The pipeline as if it drew pictures of another size."""
    model.pipeline.unet.register_to_config(sample_size=side)
    return model.pipeline


def test_batches_are_by_pixels(model: TextToImageModel) -> None:
    """The tiny autoencoder halves a side. 32 pictures up to 256 x 256; 32 (256 / 512)^2 = 8, 32 / 9 and 2 of larger."""
    found = {side: pictures_at_once(sized(model, side // 2)) for side in (64, 256, 512, 768, 1024, 4096)}
    assert found == {64: 32, 256: 32, 512: 8, 768: 3, 1024: 2, 4096: 1}
    assert pictures_at_once(model.pipeline, 5) == 5
    assert picture_size(sized(model, [128, 512])) == (256, 1024)
    assert pictures_at_once(model.pipeline) == 8
    # Canvas's pictures have 64 pixels a side: they are drawn, decoded and encoded as many at once as ever.
    assert pictures_at_once(canvas.load_pipeline()) == decoded_at_once(32, 64 * 64) == 32
    assert [encoded_at_once(side**2) for side in (32, 64, 128, 256, 512, 1024)] == [16, 16, 16, 4, 1, 1]
    assert [decoded_at_once(2, side**2) for side in (256, 512, 1024)] == [2, 1, 1]


def test_large_pictures_are_decoded_and_encoded_one_by_one(
    model: TextToImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures and latents, but for rounding; afterwards the pipeline decodes as before."""
    vae = model.pipeline.vae
    together = generate_images(model.pipeline, PROMPTS, range(5))
    encoded = model.encode_images(together * 2 - 1)
    monkeypatch.setattr(autoencoder, "AT_ONCE", TINY_SIZE * TINY_SIZE)
    decodes, encodes = watch(monkeypatch, vae, "_decode"), watch(monkeypatch, vae, "_encode")
    alone = generate_images(model.pipeline, PROMPTS, range(5))
    assert (decodes, vae.use_slicing) == ([1] * 5, False)
    assert (to_uint8(alone).int() - to_uint8(together).int()).abs().max() <= 1
    for found, wanted in zip(model.encode_images(together * 2 - 1), encoded, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert encodes == [1] * 5


def test_pictures_do_not_depend_on_the_batch(model: TextToImageModel) -> None:
    whole = generate_images(model.pipeline, PROMPTS, range(5))
    for size in (1, 2, 5):
        parts = generate_images(model.pipeline, PROMPTS, range(5), batch_size=size)
        assert (to_uint8(parts).int() - to_uint8(whole).int()).abs().max() <= 1


def test_picture_batch_is_heard(model: TextToImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 pictures, 2 at a time."""
    settings = resolve(EraseSettings, read_recipe("small").erase, ["forget_images=5", "picture_batch=2"])
    decodes = watch(monkeypatch, model.pipeline.vae, "decode")
    own_pictures(model, "forget", prompts_for(model.pipeline, ["zebra"]), settings, 0, None, None)
    assert decodes == [2, 2, 1]
    unset = resolve(EraseSettings, {**read_recipe("small").erase, "picture_batch": 2}, ["picture_batch=none"])
    assert unset.picture_batch is None


@pytest.mark.parametrize("make", [new_sd1, new_sdxl])
@pytest.mark.parametrize("side", [[16, 12], [12, 20]])
def test_oblong_pictures_are_trained_on_as_their_centre_square(make: Any, side: list[int], tmp_path: Path) -> None:
    """With a folder for them and without; XL's, repainted, are squares, too."""
    model = adapt(rebuilt(with_unet(make, sample_size=side)))
    settings = resolve(EraseSettings, read_recipe("small").erase, ["forget_images=2"])
    prompts = prompts_for(model.pipeline, ["zebra"])
    kept = own_pictures(model, "forget", prompts, settings, 0, tmp_path / "pictures", None)
    found = own_pictures(model, "forget", prompts, settings, 0, None, None)
    assert found.images.shape == (2, 3, 24, 24)
    assert torch.equal(found.images, kept.images)
    starts = (found.images + 1) / 2
    assert repainted(model, starts, found.texts, 0.5, [1, 2], None).shape == starts.shape


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_set_reaches_drawing(
    tiny_model: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    prompts, sizes = tmp_path / "prompts.txt", []
    prompts.write_text("\n".join(PROMPTS))

    def counted(pipeline: Any, texts: Any, *arguments: Any, **options: Any) -> Tensor:
        sizes.append(len(texts))
        return generate_images(pipeline, texts, *arguments, **options)

    monkeypatch.setattr("metaunlearn.draws.generate_images", counted)
    asked = ["--metrics", "concept", "--concept", "fox"] if command == "evaluate" else []
    arguments = [command, tiny_model, "--prompts", prompts, *asked, "--out", tmp_path / "out"]
    assert call(*arguments, "--set", "picture_batch=2").code == 0
    assert sizes == [2, 2, 1]
    assert "--resume" in call(*arguments, "--set", "picture_batch=3").err
    refused = call(*arguments, "--set", "picture_bach=2")
    assert (refused.code, "picture_batch" in refused.err) == (2, True)


def test_dreambooth_draws_its_prior_so_many_at_once(
    tiny_model: Path, pictures: Path, tmp_path: Path, call: Call
) -> None:
    outcome = call(
        "attack", tiny_model, "--kind", "dreambooth", "--data", pictures, "--steps", "0", "--out", tmp_path / "out",
        *(f"--set={one}" for one in ("class_prompt=a dog", "prior_images=3", "picture_batch=2", "batch_size=2")),
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert len(read_imagefolder(tmp_path / "out/prior", size=TINY_SIZE).images) == 3


# --- What the doctor says of it --------------------------------------------------------------------------------------


def test_the_doctor_counts_what_the_autoencoder_works_on() -> None:
    """Stable Diffusion's decoder is largest where its last level begins, at 256 channels of full size in float32: what
    goes into a layer, what comes out and what is added after it, 3 x 256 x 4 bytes a pixel of 64 x 64."""
    vae = ARCHITECTURES["sd14"].build_vae()
    decoded, encoded = autoencoder_peaks(type(vae), json.dumps(dict(vae.config)), (64, 64), (4, 8, 8))
    assert decoded == pytest.approx(3 * 256 * 4 * 64 * 64, rel=1e-3)
    assert 0 < encoded < decoded


def test_the_doctor_counts_the_larger_of_pictures_and_steps(model: TextToImageModel) -> None:
    facts = drawing_facts(model)
    one, many = (facts.peak(pictures=100, picture_batch=batch, paths=0) for batch in (1, 100))
    assert facts.usual_batch == 32
    assert many == 100 * max(2 * facts.denoised, facts.decoded)
    assert one == max(2 * facts.denoised, facts.decoded, 16 * facts.encoded)
    assert facts.peak(pictures=100, picture_batch=1, paths=64) == one
    assert facts.peak(pictures=1, picture_batch=None, paths=64) == 64 * facts.denoised

    def estimated(*overrides: str) -> doctor.JobEstimate:
        small = ["batch_size=1", "gradient_checkpointing=true", "bank_trajectories=1", "retain_images=5000"]
        return doctor.estimate(
            model.pipeline, meta=False, overrides=[*small, *overrides], speed=1e9, available_bytes=1000
        )

    whole = estimated("picture_batch=2000")
    assert whole.memory_bytes - estimated("picture_batch=1000").memory_bytes == many * 10
    assert "picture_batch=1" in [override for one in whole.advice for override in one.overrides]
