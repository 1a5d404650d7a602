"""Guidance is what diffusers draws with, and what is written down of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import Call
from metaunlearn.config import EraseSettings
from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import check_asked, draws_for
from metaunlearn.errors import UserError
from metaunlearn.generation import Sampling, generate_images
from metaunlearn.models import load_pipeline
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

SMALL = read_recipe("small").erase


def test_nought_is_none_and_is_written_as_none(tiny_model: Path) -> None:
    assert Sampling(guidance_scale=0).guidance_scale == 1.0
    draws = draws_for([Prompt("a", guidance_scale=0.0), Prompt("b")], images=1, seed=0, guidance_scale=2)
    assert [draw.guidance_scale for draw in draws] == [1.0, 2.0]
    assert resolve(EraseSettings, SMALL, ["forget_guidance=0"]).forget_guidance == 1.0
    pipeline = load_pipeline(tiny_model)
    one, other = (generate_images(pipeline, ["a dog"], [0], steps=2, guidance_scale=scale) for scale in (0.0, 1.0))
    assert torch.equal(one, other)


def test_what_diffusers_would_not_draw_is_refused(tiny_model: Path, tmp_path: Path, call: Call) -> None:
    says = "0.5 cannot be drawn: diffusers guides above 1 only"
    with pytest.raises(UserError, match=says):
        Sampling(guidance_scale=0.5)
    with pytest.raises(UserError, match=says):
        check_asked(images=1, steps=None, guidance_scale=0.5)
    with pytest.raises(UserError, match=says):
        draws_for([Prompt("a", guidance_scale=0.5)], images=1, seed=0, guidance_scale=2)
    with pytest.raises(UserError, match=f"retain_guidance = '0.5': .*{says}"):
        resolve(EraseSettings, SMALL, ["retain_guidance=0.5"])
    found = call("generate", tiny_model, "--prompt", "a dog", "--guidance", "0.5", "--out", tmp_path / "out")
    assert found.code == 2
    assert says in found.err
    assert not (tmp_path / "out").exists()
