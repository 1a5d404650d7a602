"""A pipeline handed over from Python stays as it is: weights, precision, device, and what is to be trained."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

import metaunlearn
from attack_fixtures import NEVER
from metaunlearn.attacking import attack
from metaunlearn.attacking_prompts import attack_prompts
from metaunlearn.attacking_search import search_attacks
from metaunlearn.data.prompts import Prompt
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError
from metaunlearn.models import device_for, read_only, with_own_denoiser
from tiny_models import new_sd1


def half_and_trainable() -> StableDiffusionPipeline:
    """As somebody may have it in his program: in half precision, about to be trained."""
    pipeline = new_sd1().to(torch.float16)
    pipeline.vae.to(torch.float32)  # Which needs no cast.
    for name in ("unet", "vae", "text_encoder"):
        getattr(pipeline, name).train().requires_grad_(True)
    return pipeline


def state_of(pipeline: StableDiffusionPipeline) -> dict[str, object]:
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    return {name: part.training for name, part in parts.items()} | {
        f"{name}.{key}": (id(p), p.data_ptr(), p.dtype, p.device, p.requires_grad)
        for name, part in parts.items()
        for key, p in part.named_parameters()
    }


@pytest.mark.parametrize("call", ["erase", "base", "model of prompts", "base of prompts", "search"])
def test_a_callers_pipeline_keeps_its_precision_device_and_gradients(
    call: str, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    pipeline = half_and_trainable()
    before, out = state_of(pipeline), tmp_path / "out"
    prompts = [Prompt("a knife", 1)]
    quick = ["prefix_tokens=2", "steps_per_timestep=1", "first_timestep=100", "timestep_stride=900"]
    if call == "erase":
        erase(pipeline, ["zebra"], method="uce", meta=False)
    elif call == "base":
        attack(tiny_model, kind="interpolate", base=pipeline, strengths=(0.5,), out=out)
    elif call == "model of prompts":
        attack_prompts(pipeline, prompts, NEVER, base=tiny_model, overrides=quick, out=out)
    elif call == "base of prompts":
        attack_prompts(tiny_model, prompts, NEVER, base=pipeline, overrides=quick, out=out)
    else:
        with pytest.raises(UserError, match="budget of at least 1 step"):
            search_attacks(pipeline, pictures, steps=0, prompts=prompts, judge=None, concept="knife", out=out)  # type: ignore[arg-type]
    assert state_of(pipeline) == before


def test_weights_that_need_no_copy_are_shared() -> None:
    pipeline = new_sd1()
    for own, copied in ((read_only(pipeline), set()), (with_own_denoiser(pipeline), {"unet"})):
        for name in ("unet", "vae", "text_encoder"):
            one, two = (dict(getattr(each, name).named_parameters()) for each in (pipeline, own))
            assert one.keys() == two.keys()
            assert all((p.data_ptr() == two[key].data_ptr()) == (name not in copied) for key, p in one.items())
            assert all(p is not two[key] for key, p in one.items())


def test_work_is_done_where_the_callers_pipeline_is() -> None:
    """A pipeline on a card is not carried to the CPU in silence; one that is given by name goes there."""
    on_a_card = SimpleNamespace(config={}, unet=SimpleNamespace(device=torch.device("cuda", 1)))
    assert device_for(on_a_card, None) == "cuda:1"
    assert device_for(SimpleNamespace(pipeline=on_a_card), None) == "cuda:1"  # What erase returns.
    assert device_for(on_a_card, "cpu") == "cpu"
    assert device_for("canvas", None) == "cpu"
    assert device_for("canvas", "cuda") == "cuda"
    offloaded = SimpleNamespace(config={}, unet=SimpleNamespace(device=torch.device("meta")))
    assert device_for(offloaded, None) == "cpu"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda folder: metaunlearn.attack("canvas", folder, out=folder), "{}/empty holds no images"),
        (lambda folder: metaunlearn.load(folder), "{}/empty is a folder without model_index.json"),
        (lambda folder: metaunlearn.build_report(folder), "{}/empty holds no results"),
        (lambda folder: metaunlearn.load_judge(folder), "cannot be loaded: .* {}/empty"),
        (lambda folder: metaunlearn.evaluate_pictures(folder, metrics="clip-score"), "{}/empty holds no images"),
        (lambda folder: metaunlearn.evaluate("canvas", "a dog", metrics="fid", reference=folder), "{}/empty holds no"),
        (
            lambda folder: metaunlearn.evaluate("canvas", Path(folder) / "x.txt", metrics="concept", concept="knife"),
            "{}/empty/x.txt .* does not exist",
        ),
        (lambda folder: metaunlearn.make_delta("canvas", "canvas", f"{folder}/x"), "{}/empty/x must end in"),
        (lambda folder: metaunlearn.apply_delta("canvas", f"{folder}/x", folder), "no delta {}/empty/x"),
        (lambda folder: metaunlearn.export("canvas", f"{folder}/x"), "{}/empty/x must end in"),
    ],
)
def test_a_path_may_begin_at_the_home_folder(
    call: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(metaunlearn.UserError, match=says.format(re.escape(str(tmp_path)))):
        call("~/empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_result_is_saved_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = erase(new_sd1(), ["zebra"], method="uce", meta=False)
    assert result.save("~/model") == tmp_path / "model"
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert len(repr(result)) < 1000
    assert "'meta': False" in repr(result)
