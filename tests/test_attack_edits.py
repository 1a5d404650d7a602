"""Attacks that do not train: interpolation, merging a LoRA, quantisation, starts from real pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from attack_fixtures import FAST, TEXT, UNET, VAE, assert_same_run, changed, write_pictures
from conftest import TINY_SIZE, read_lines
from metaunlearn.attacking import attack
from metaunlearn.attacks import add_difference, from_pictures
from metaunlearn.attacks.from_pictures import Img2Img, Inpaint, centre_mask, repainted
from metaunlearn.attacks.interpolate import interpolated
from metaunlearn.attacks.lora import WEIGHTS_FILE
from metaunlearn.attacks.quantize import quantized, round_rows
from metaunlearn.data.imagefolder import read_imagefolder
from metaunlearn.errors import UserError
from metaunlearn.generation import Sampling
from metaunlearn.models import load
from metaunlearn.models.interface import TextToImageModel
from tiny_models import with_unet


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def other(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run: another model of the same shape, and an adapter."""
    out = tmp_path_factory.mktemp("other") / "lora"
    settings = [*FAST, "learning_rate=0.01"]
    attack(tiny_model, pictures, kind="lora", steps=(3,), overrides=settings, out=out)
    return out


# --- Interpolation ---------------------------------------------------------------------------------------------------


def test_interpolation_ends_bitwise_at_both_models(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = attack(tiny_model, kind="interpolate", base=other, strengths=(0, 0.5, 1, 1.25), out=out).checkpoints
    assert [path.name for path in found.values()] == [
        "strength-0.00", "strength-0.50", "strength-1.00", "strength-1.25",
    ]  # fmt: skip
    assert changed(found[0], tiny_model, UNET) == set()
    assert changed(found[1], other, UNET) == set()
    a, b = load_file(tiny_model / UNET), load_file(other / UNET)
    for strength in (0.5, 1.25):
        between = load_file(found[strength] / UNET)
        for name in a:
            torch.testing.assert_close(between[name], a[name] + strength * (b[name] - a[name]), rtol=0, atol=1e-6)
        load(found[strength])
    assert changed(out, found[1.25], UNET) == set()
    for file in (TEXT, VAE):
        assert changed(out, tiny_model, file) == set()
    rows = read_lines(out / "log.jsonl")
    assert rows[1]["distance"] == pytest.approx(rows[2]["distance"] / 2, rel=1e-4)


def test_lerp_is_exact_at_the_ends() -> None:
    """0.1 + 1 * (1e-9 - 0.1) is not 1e-9 in float32."""
    a, b = {"w": torch.tensor([0.1])}, {"w": torch.tensor([1e-9])}
    assert torch.equal(interpolated(a, b, 1.0)["w"], b["w"])
    assert torch.equal(interpolated(a, b, 0.0)["w"], a["w"])
    assert a["w"] + (b["w"] - a["w"]) != b["w"]


def test_interpolation_towards_another_architecture_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different denoisers"):
        attack(tiny_model, kind="interpolate", base="canvas", out=tmp_path / "run")
    with pytest.raises(UserError, match="--base MODEL"):
        attack(tiny_model, kind="interpolate", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_interpolation_resumes(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    def stop(label: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = {"kind": "interpolate", "base": other, "strengths": (0.2, 0.4, 0.6)}
    attack(tiny_model, out=tmp_path / "whole", **options)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        attack(tiny_model, out=tmp_path / "run", progress=stop, **options)  # type: ignore[arg-type]
    attack(tiny_model, out=tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# --- Adding a difference ---------------------------------------------------------------------------------------------


def test_a_difference_is_added_by_its_strength(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    """To the base itself at strength 1 it gives the donor (float32 sums: 1e-6); to another model, the sum."""
    erased = attack(
        tiny_model, kind="interpolate", base=other, strengths=(0.3,), out=tmp_path / "erased"
    ).checkpoints[0.3]  # fmt: skip
    difference = {"kind": "add-difference", "base": tiny_model, "overrides": [f"donor={other}"]}
    found = attack(erased, strengths=(0, 0.5), out=tmp_path / "run", **difference).checkpoints  # type: ignore[arg-type]
    start, base, donor = (load_file(folder / UNET) for folder in (erased, tiny_model, other))
    assert changed(found[0], erased, UNET) == set()
    half = load_file(found[0.5] / UNET)
    for name in start:
        wanted = start[name] + 0.5 * (donor[name] - base[name])
        torch.testing.assert_close(half[name], wanted, rtol=0, atol=1e-6)
    whole = attack(tiny_model, strengths=(1,), out=tmp_path / "whole", **difference).checkpoints[1]  # type: ignore[arg-type]
    for name, p in load_file(whole / UNET).items():
        torch.testing.assert_close(p, donor[name], rtol=0, atol=1e-6)
    for file in (TEXT, VAE):
        assert changed(found[0.5], erased, file) == set()


def test_the_donor_comes_to_the_very_device_of_the_model(
    tiny_model: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the first of its kind; and it is read once, whatever the number of strengths."""
    devices = []

    def recording(model: str, device: torch.device) -> TextToImageModel:
        devices.append(str(device))
        return load(model, device)

    monkeypatch.setattr(add_difference, "load", recording)
    options = {"kind": "add-difference", "base": tiny_model, "overrides": [f"donor={other}"], "strengths": (0.5, 1)}
    attack(tiny_model, device="cpu:0", out=tmp_path / "run", **options)  # type: ignore[arg-type]
    assert devices == ["cpu:0"]


def test_a_difference_of_other_models_is_refused(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different denoisers"):
        attack(tiny_model, kind="add-difference", base=other, overrides=["donor=canvas"], out=tmp_path / "run")
    with pytest.raises(UserError, match="'donor' is missing"):
        attack(tiny_model, kind="add-difference", base=other, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    done = {"kind": "add-difference", "base": tiny_model, "strengths": (1,), "out": tmp_path / "run"}
    attack(tiny_model, overrides=[f"donor={other}"], **done)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"asked for differently \(files, settings"):  # Its name, and its weights.
        attack(tiny_model, overrides=[f"donor={tiny_model}"], resume=True, **done)  # type: ignore[arg-type]


# --- A LoRA of another model -----------------------------------------------------------------------------------------


def test_a_merged_lora_moves_by_its_strength(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    """On the model that it was trained on, strength 1 is the attacked model itself (float32 sums: 1e-6)."""
    pytest.importorskip("peft")
    settings = [f"adapter={other / WEIGHTS_FILE}"]
    found = attack(tiny_model, kind="lora-merge", strengths=(0, 0.5, 1), overrides=settings, out=tmp_path / "run")
    start, end = load_file(tiny_model / UNET), load_file(other / UNET)
    assert changed(other, tiny_model, UNET)
    for strength, folder in found.checkpoints.items():
        merged = load_file(folder / UNET)
        assert merged.keys() == start.keys()
        for name in start:
            wanted = start[name] + strength * (end[name] - start[name])
            torch.testing.assert_close(merged[name], wanted, rtol=0, atol=1e-6)


def test_what_is_no_lora_is_refused(tiny_model: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    (tmp_path / "pickle.bin").write_bytes(b"")
    wrong = {name: tensor[..., :-1] for name, tensor in load_file(other / WEIGHTS_FILE).items()}
    save_file({name: tensor.contiguous() for name, tensor in wrong.items()}, tmp_path / "wrong.safetensors")
    for name, says in (
        ("other.safetensors", "no low-rank factors"),
        ("broken.safetensors", "cannot be read"),
        ("pickle.bin", "pickles"),
        ("nothing.safetensors", r"no \.safetensors file"),
        ("wrong.safetensors", "does not fit"),
    ):
        with pytest.raises(UserError, match=says):
            attack(tiny_model, kind="lora-merge", overrides=[f"adapter={tmp_path / name}"], out=tmp_path / "run")
    with pytest.raises(UserError, match="'adapter' is missing"):
        attack(tiny_model, kind="lora-merge", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Quantisation ----------------------------------------------------------------------------------------------------


def test_rounding_by_hand() -> None:
    """3 bits: 7 levels, -3 to 3 steps. Row 0: step 0.9 / 3 = 0.3; row 1: 6 / 3 = 2; row 2 is zero and stays so."""
    W = torch.tensor([[0.9, -0.4, 0.1], [-6.0, 2.9, 3.1], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.9, -0.3, 0.0], [-6.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(round_rows(W, 3), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_of_few_levels_in_each_row(bits: int) -> None:
    W = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = round_rows(W, bits)
    for row, rounded in zip(W, found, strict=True):
        step = row.abs().max() / (2 ** (bits - 1) - 1)
        assert len(rounded.unique()) <= 2**bits - 1
        assert (row - rounded).abs().max() <= step / 2 * (1 + 1e-12)
        torch.testing.assert_close((rounded / step).round(), rounded / step)


def test_quantising_a_model_leaves_biases_and_norms(tiny_model: Path, tmp_path: Path) -> None:
    found = attack(tiny_model, kind="quantize", strengths=(8, 4), out=tmp_path / "run").checkpoints
    assert [path.name for path in found.values()] == ["bits-8", "bits-4"]
    weights = load_file(tiny_model / UNET)
    for bits, folder in found.items():
        rounded = load_file(folder / UNET)
        wanted = quantized(weights, int(bits))
        assert all(torch.equal(rounded[name], wanted[name]) for name in weights)
        moved = changed(folder, tiny_model, UNET)
        assert moved == {name for name, p in weights.items() if p.ndim >= 2 and p.abs().max() > 0}
        assert changed(folder, tiny_model, VAE) == set()
    with pytest.raises(UserError, match="whole numbers from 2 to 16"):
        attack(tiny_model, kind="quantize", strengths=(0.5,), out=tmp_path / "other")


# --- Starts from real pictures ---------------------------------------------------------------------------------------


def kept(model: Path, pictures: Path, size: int = TINY_SIZE) -> torch.Tensor:
    """The pictures as the autoencoder gives them back, in [-1, 1]."""
    adapter = load(model)
    with torch.no_grad():
        latents = adapter.encode_images(read_imagefolder(pictures, size=size).images)[0]
        decoded: torch.Tensor = adapter.pipeline.vae.decode(latents / adapter.pipeline.vae.config.scaling_factor).sample
    return decoded.clamp(-1, 1)


@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
def test_a_stronger_start_is_further_from_the_picture_as_the_autoencoder_keeps_it(
    tiny_model: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    settings = ["prompt=a knife", "batch_size=3"]
    options = {"kind": kind, "strengths": (0.4, 1.0), "overrides": settings, "seed": 5}
    found = attack(tiny_model, pictures, out=tmp_path / "run", **options).checkpoints  # type: ignore[arg-type]
    originals = kept(tiny_model, pictures)
    distances = []
    for folder in found.values():
        made = read_imagefolder(folder, size=TINY_SIZE)
        assert made.texts == ["a knife"] * 4
        distances.append(float((made.images - originals).abs().mean()))
    assert distances[0] < distances[1]
    alone = attack(
        tiny_model, pictures, kind=kind, strengths=(1.0,), overrides=settings, seed=5, out=tmp_path / "alone"
    ).checkpoints[1.0]
    for name in ("000000.png", "000003.png"):
        assert (alone / name).read_bytes() == (found[1.0] / name).read_bytes()
    with Image.open(found[0.4] / "000000.png") as picture:
        assert picture.size == (TINY_SIZE, TINY_SIZE)


def test_inpainting_keeps_what_is_around_the_square(pictures: Path, tmp_path: Path) -> None:
    """The rim's latents are the picture's own, so the decoded rim is nearly what decoding the picture gives.

    Of 32 pixels a side the square has 12 to 19."""
    size, settings = 32, ["hole=0.25", "prompt=a knife"]
    model = with_unet(sample_size=size // 2)
    model.save_pretrained(tmp_path / "model")
    run = attack(
        tmp_path / "model", pictures, kind="inpaint", strengths=(1.0,), overrides=settings, out=tmp_path / "run"
    ).checkpoints[1.0]
    there = kept(tmp_path / "model", pictures, size)
    difference = (read_imagefolder(run, size=size).images - there).abs().mean(dim=(0, 1))
    # Group norms of the decoder see the whole picture, so the rim is near rather than equal.
    assert difference[:8].mean() < 0.5 * difference[12:20, 12:20].mean()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_around_the_square_there_is_as_much_noise_as_in_it(
    scheduler: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of five steps of ten, of a picture of nothing and a denoiser that knows the noise in it."""
    model = load(tiny_model)
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    sampling = Sampling(steps=10, guidance_scale=1)
    monkeypatch.setattr("metaunlearn.attacks.from_pictures.default_sampling", lambda _: sampling)
    nothing = torch.zeros(4, *model.latent_shape)

    def encoded(images: torch.Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda _: nothing[: len(images)]))

    monkeypatch.setattr(model.pipeline.vae, "encode", encoded)
    monkeypatch.setattr(type(model), "encode_images", lambda *_: (nothing,))

    def noise(x: torch.Tensor, t: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (x / (1 - model.schedule.alpha_bar[int(t)]).sqrt(),)

    images, rim = torch.zeros(4, 3, TINY_SIZE, TINY_SIZE), centre_mask(TINY_SIZE, 0.5, nothing.shape[-2:])[0, 0] == 0
    put_back = Inpaint(hole=0.5)._after_step(model, images, [0, 1, 2, 3])
    levels: list[tuple[float, float]] = []

    def looked_at(pipeline: Any, number: int, t: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents = put_back(pipeline, number, t, values)["latents"]
        levels.append((float(latents[..., rim].std()), float(latents[..., ~rim].std())))
        return {"latents": latents}

    monkeypatch.setattr(model.pipeline.unet, "forward", noise)
    repainted(model, images, ["a knife"] * 4, 0.5, [4, 5, 6, 7], looked_at)
    assert len(levels) == 5
    assert levels[0][0] > 2 * levels[3][0] > 0
    assert all(around == pytest.approx(inside, rel=0.05, abs=1e-3) for around, inside in levels), levels


def test_ddim_in_pndms_place_clips_no_latents(tiny_model: Path) -> None:
    """As diffusers' DDIM does by default, and PNDM's configuration does not say."""
    model = load(tiny_model)
    said = {name: value for name, value in model.pipeline.scheduler.config.items() if name != "clip_sample"}
    model.pipeline.scheduler = PNDMScheduler.from_config(said)
    found: list[Any] = []

    def looked_at(pipeline: Any, number: int, t: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found.append(pipeline.scheduler)
        return values

    repainted(model, torch.zeros(1, 3, TINY_SIZE, TINY_SIZE), ["a knife"], 1.0, [0], looked_at)
    assert isinstance(found[0], DDIMScheduler)
    assert not found[0].config.clip_sample
    assert isinstance(model.pipeline.scheduler, PNDMScheduler), "the model's own stays"


def test_the_mask_is_a_centred_square_on_the_latents() -> None:
    """32 px, hole 0.5: pixels 8 to 23, latent pixels 4 to 11 of 16."""
    mask = centre_mask(32, 0.5, (16, 16))
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., 4:12, 4:12] = 1
    assert torch.equal(mask, expected)
    assert centre_mask(32, 1.0, (16, 16)).min() == 1


def test_strengths_that_leave_no_step_are_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    for strengths in ((0.0,), (0.2,), (1.5,)):  # The tiny model samples in 3 steps.
        with pytest.raises(UserError, match="1/3"):
            attack(tiny_model, pictures, kind="img2img", strengths=strengths, out=tmp_path / "run")
    for strengths in ((), (0.5, 0.5)):
        with pytest.raises(UserError, match="each once"):
            attack(tiny_model, pictures, kind="img2img", strengths=strengths, out=tmp_path / "run")
    with pytest.raises(UserError, match="takes strengths"):
        attack(tiny_model, pictures, kind="img2img", steps=(0, 5), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_picture_i_has_seed_plus_i_in_every_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def repaint(_: Any, starts: Tensor, texts: list[str], strength: float, seeds: list[int], after: Any) -> Tensor:
        seen.extend(seeds)
        return starts

    monkeypatch.setattr(from_pictures, "repainted", repaint)
    task = SimpleNamespace(model=None, seed=40, data=SimpleNamespace(images=torch.zeros(5, 3, 8, 8), texts=["a"] * 5))
    Img2Img(batch_size=2).make(task, 0.5, tmp_path / "run", None)  # type: ignore[arg-type]
    assert seen == [40, 41, 42, 43, 44]


def test_the_noise_around_the_square_is_not_the_pipelines(tiny_model: Path) -> None:
    """A picture's seed begins the pipeline's own noise; that around the square is of another stream of it."""
    model = load(tiny_model)
    put_back = Inpaint(hole=0.25)._after_step(model, torch.zeros(2, 3, model.image_size, model.image_size), [3, 4])
    scheduler = SimpleNamespace(timesteps=torch.tensor([900, 500]), add_noise=lambda x_0, eps, t: eps)
    latents = torch.zeros(2, *model.latent_shape)
    eps = put_back(SimpleNamespace(scheduler=scheduler), 0, torch.tensor(900), {"latents": latents})["latents"]
    around = eps[:, :, 0]  # The square does not reach the first row.
    assert around.std() > 0.5
    assert not torch.equal(around[0], around[1])
    for row, seed in zip(around, (3, 4), strict=True):
        pipelines = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))[:, 0]
        assert not torch.allclose(row, pipelines)


def test_around_the_square_is_the_picture_that_was_given(tiny_model: Path) -> None:
    """Its latent is that of pixels in [-1, 1], of which pictures are in [0, 1]."""
    model = load(tiny_model)
    starts = torch.rand(1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    put_back = Inpaint(hole=0.25)._after_step(model, starts, [3])
    scheduler = SimpleNamespace(timesteps=torch.tensor([900, 500]), add_noise=lambda x_0, eps, t: x_0)
    latents = torch.zeros(1, *model.latent_shape)
    found = put_back(SimpleNamespace(scheduler=scheduler), 0, torch.tensor(900), {"latents": latents})["latents"]
    expected = model.encode_images(starts * 2 - 1)[0]
    torch.testing.assert_close(found[:, :, 0], expected[:, :, 0])
