"""Calls from Python that would go wrong late, or without a word, are refused before any work."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import metaunlearn
from metaunlearn.canvas import load_pipeline
from metaunlearn.checkpoint import save_training
from metaunlearn.cli.console import _Bars
from metaunlearn.draws import check_asked
from metaunlearn.erasing import EraseResult
from metaunlearn.errors import RunError, UserError
from metaunlearn.generation import default_sampling
from metaunlearn.meta.objective import _errors
from metaunlearn.models import adapt
from metaunlearn.pipelines import save_pipeline
from metaunlearn.recipe import read_recipe


@pytest.fixture(scope="module")
def canvas() -> Any:
    return load_pipeline()


@pytest.mark.parametrize("strength", [math.nan, math.inf, -0.5])
def test_strengths_are_finite_and_not_negative(canvas: Any, tmp_path: Path, strength: float) -> None:
    with pytest.raises(UserError, match="finite numbers of at least 0"):
        metaunlearn.attack(canvas, base="canvas", kind="interpolate", strengths=[strength], out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("steps", [[0.5, 1.5], ["1"], [2, 1], []])
def test_steps_are_whole_and_ascend(canvas: Any, tmp_path: Path, steps: Any) -> None:
    with pytest.raises(UserError, match="must be whole numbers from 0 on"):
        metaunlearn.attack(canvas, tmp_path, steps=steps, out=tmp_path / "o")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_a_guidance_scale_is_finite(scale: float) -> None:
    with pytest.raises(UserError, match="guidance scale of at least 0"):
        check_asked(images=1, steps=None, guidance_scale=scale)


@pytest.mark.parametrize("concept", ["日本", "\u200b", "\x00"])
def test_a_concept_of_unknown_tokens_alone_is_refused(canvas: Any, concept: str) -> None:
    with pytest.raises(UserError, match="tokenises to nothing"):
        adapt(canvas).check_concept(concept)


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes("description = 'é'".encode("latin-1"))
    with pytest.raises(UserError, match=r"byte 15 is not UTF-8"):
        read_recipe(str(file))


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model = adapt(load_pipeline())
    next(model.unet.parameters()).data.fill_(math.nan)
    with pytest.raises(RunError, match="the weights of unet are not finite numbers"):
        save_pipeline(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    broken = {"w": torch.tensor([1.0, math.inf])}
    with pytest.raises(RunError, match="not finite numbers after step 3; the last good state was kept"):
        save_training(tmp_path / "state", broken, torch.optim.SGD(broken.values()), 3)
    assert not (tmp_path / "state").exists()


def test_a_result_keeps_how_it_is_drawn(canvas: Any, tmp_path: Path) -> None:
    result = EraseResult(canvas, read_recipe("small").erase, None, {})  # type: ignore[arg-type]
    saved = result.save(tmp_path / "saved")
    assert default_sampling(metaunlearn.load(str(saved)).pipeline) == default_sampling(canvas)
    with pytest.raises(UserError, match="is there already"):
        result.save(saved)


def test_a_target_of_another_shape_is_not_broadcast() -> None:
    with pytest.raises(RunError, match=r"the shape of the model's output, \(2, 4, 8, 8\), got \(2, 1, 8, 8\)"):
        _errors(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8))


def test_a_bar_that_begins_again_forgets_that_it_was_full() -> None:
    bars = _Bars()
    bars("erasing", 200, 200)
    bars("erasing", 3, 200)
    (task,) = bars._display.tasks
    assert (task.completed, task.finished) == (3, False)


SMALL = ["steps=1", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2"]


def test_settings_may_be_a_generator_a_recipe_a_path_and_gradients_off(canvas: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "small"\n')
    with pytest.raises(UserError, match="inner_steps"):
        metaunlearn.erase(canvas, "knife", meta=False, overrides=(text for text in [*SMALL, "inner_steps=1"]))  # type: ignore[arg-type]
    with torch.no_grad():
        result = metaunlearn.erase(
            canvas,
            "knife",
            meta=False,
            overrides=iter(SMALL),
            recipe=recipe,
            out=tmp_path / "run",  # type: ignore[arg-type]
        )
    assert result.settings.steps == 1
