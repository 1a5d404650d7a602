"""What a pipeline cannot draw, or would read in part only, is said before it draws."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverSinglestepScheduler, EulerDiscreteScheduler, PNDMScheduler

from conftest import Call
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError, UserError
from metaunlearn.generation import Sampling, default_sampling, generate_images
from metaunlearn.models import adapt, load
from tiny_models import new_sd1, new_sdxl

LONG = "a knife " + "and a dog " * 40
"""121 words, each a token of Canvas's tokenizer; the tiny pipelines read 14 to 22 of them."""


def few_timesteps() -> Any:
    pipeline = new_sd1()
    pipeline.scheduler = DDIMScheduler(num_train_timesteps=20, clip_sample=False)
    return pipeline


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompts": [], "seeds": []}, "at least one prompt and a seed for each, got 0 and 0"),
        ({"prompts": ["a dog", "a cat"]}, "a seed for each, got 2 and 1"),
        ({"steps": 0}, r"at least 1 step \(steps=, --steps\), got 0"),
        (
            {"steps": 1001},
            r"has 1000 timesteps, and its DDIMScheduler cannot sample in 1001 steps .* take 999 or fewer",
        ),
        ({"steps": 2.5}, "expected a whole number"),
        ({"steps": 10**9}, r"cannot sample in 1000000000 steps .* take 999 or fewer"),
        ({"guidance_scale": float("nan")}, "a finite guidance scale"),
        ({"precision": "float64"}, "precision is one of float32, tf32, bf16, fp16, not 'float64'"),
    ],
)
def test_wrong_calls(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        generate_images(new_sd1(), **{"prompts": ["a dog"], "seeds": [0], **options})


def test_a_single_text_is_a_list_of_one_and_the_pipelines_bar_is_its_owners() -> None:
    pipeline = new_sd1()
    pipeline.set_progress_bar_config(disable=None, desc="mine")
    one = generate_images(pipeline, "a dog", [3], steps=2)
    assert torch.equal(one, generate_images(pipeline, ["a dog"], [3], steps=2))
    assert pipeline._progress_bar_config == {"disable": None, "desc": "mine"}


def test_a_short_schedule_has_fewer_steps(call: Call, tmp_path: Path) -> None:
    pipeline = few_timesteps()
    assert default_sampling(pipeline) == Sampling(steps=20)
    assert generate_images(pipeline, ["a dog"], [0]).isfinite().all()
    pipeline.save_pretrained(tmp_path / "model")
    refused = call("generate", tmp_path / "model", "--prompt", "a dog", "--steps", 21, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "has 20 timesteps" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scheduler", "trained", "most"),
    [
        (DDIMScheduler(num_train_timesteps=20, clip_sample=False, steps_offset=1), 20, 19),
        (PNDMScheduler(num_train_timesteps=50, skip_prk_steps=True, steps_offset=1), 50, 49),
        (EulerDiscreteScheduler(num_train_timesteps=20), 20, 50),
    ],
)
def test_the_scheduler_itself_says_how_many_steps_there_is_room_for(scheduler: Any, trained: int, most: int) -> None:
    pipeline = new_sd1()
    pipeline.scheduler = scheduler
    assert scheduler.config.num_train_timesteps == trained
    assert default_sampling(pipeline).steps == most
    assert generate_images(pipeline, "a dog", 0).isfinite().all()
    if most < 50:
        with pytest.raises(UserError, match=rf"has {trained} timesteps, .*; take {most} or fewer"):
            generate_images(pipeline, "a dog", 0, steps=most + 1)


def test_a_sampling_file_that_says_something_else_is_named(tmp_path: Path) -> None:
    new_sd1().save_pretrained(tmp_path / "model")
    for content in ('{"steps": 3, "scale": 2}', "[3]", '{"steps": "3"}', '{"steps": 0}', '{"guidance_scale": -1}'):
        (tmp_path / "model" / "sampling.json").write_text(content)
        with pytest.raises(UserError, match=r"sampling.json does not say how .* steps and guidance_scale"):
            default_sampling(load(tmp_path / "model").pipeline)


@pytest.mark.parametrize("make", [new_sd1, new_sdxl])
def test_a_concept_that_the_model_reads_in_part_is_refused(make: Any, tmp_path: Path) -> None:
    for options in ({"method": "uce"}, {"method": "esd-x-1"}):
        with pytest.raises(UserError, match=r"the concept 'a knife and a dog .*…' is longer than the \d\d tokens"):
            erase(make(), [LONG], meta=False, out=tmp_path / "out", **options)
    with pytest.raises(UserError, match=r"the guide 'a knife and a dog .*…' .* is longer than the \d\d tokens"):
        erase(make(), ["zebra"], method="uce", meta=False, overrides=[f"guide={LONG}"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_and_captions_that_are_read_in_part_are_warned_of(
    call: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = call("generate", "canvas", "--prompt", LONG, "--prompt", "a dog", "--steps", 1, "--out", tmp_path / "out")
    assert "1 of 2 prompts are longer than the 24 tokens that MODEL reads" in said.err
    with caplog.at_level(logging.WARNING):
        LatentSet.encode(adapt(new_sd1()), torch.zeros(2, 3, 32, 32), [LONG, LONG])
    assert "1 of 1 prompts are longer than the 24 tokens" in caplog.text


def test_an_edit_that_changes_nothing_is_no_success() -> None:
    with pytest.raises(RunError, match="changed nothing"):
        erase(new_sd1(), ["zebra"], method="uce", meta=False, overrides=["guide=zebra"])


def test_how_a_model_is_drawn_is_known_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_sd1().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "sampling.json").write_text('{"steps": 8, "guidance_scale": 3.0}')
    monkeypatch.chdir(tmp_path)
    pipeline = load("model").pipeline
    monkeypatch.chdir("/")
    assert default_sampling(pipeline) == Sampling(steps=8, guidance_scale=3.0)


def test_numbers_of_numpy_are_seeds_and_a_file_of_prompts_is_no_prompt(tmp_path: Path) -> None:
    pipeline = new_sd1()
    drawn = generate_images(pipeline, "a dog", np.int64(3), steps=1)
    assert torch.equal(drawn, generate_images(pipeline, "a dog", 3, steps=1))
    (tmp_path / "prompts.txt").write_text("a dog\n")
    with pytest.raises(UserError, match=r"prompts.txt' is a file; for the prompts in it give prompts=Path\("):
        generate_images(pipeline, str(tmp_path / "prompts.txt"), 3)


def test_a_scheduler_keeps_its_settings_whatever_was_drawn() -> None:
    """diffusers' switches ``lower_order_final`` on while it draws."""
    pipeline = new_sd1()
    own = DPMSolverSinglestepScheduler.from_config(pipeline.scheduler.config, lower_order_final=False)
    pipeline.scheduler = own
    generate_images(pipeline, "a dog", 0, steps=5)
    assert pipeline.scheduler is own
    assert not own.config.lower_order_final


def test_a_method_that_looks_back_needs_some_steps() -> None:
    pipeline = new_sd1()
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=False)
    with pytest.raises(UserError, match=r"cannot sample in 2 steps .*; take 4 or more"):
        generate_images(pipeline, "a dog", 0, steps=2)
    assert generate_images(pipeline, "a dog", 0, steps=4).isfinite().all()


def test_few_steps_on_noise_levels_between_those_of_training() -> None:
    """Their timesteps are logarithms of sigmas, some below 0."""
    pipeline = new_sd1()
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_type="continuous", prediction_type="v_prediction"
    )
    assert generate_images(pipeline, "a dog", 0, steps=3).isfinite().all()
