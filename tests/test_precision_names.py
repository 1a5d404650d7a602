"""fp16 and float16, bf16 and bfloat16, fp32 and float32 are the same wherever a precision is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaunlearn import export, generate_images
from metaunlearn.config import EraseSettings
from metaunlearn.data.recipes import MakeSettings
from metaunlearn.draws import DrawSettings
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

NAMES = [("float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32")]


@pytest.mark.parametrize(("long", "short"), NAMES)
def test_settings_understand_either_name(long: str, short: str) -> None:
    of_pictures = {resolve(DrawSettings, {}, [f"precision={name}"]).precision for name in (long, short)}
    small, keys = read_recipe("small").erase, ("precision", "teacher_precision")
    of_erasing = {
        getattr(resolve(EraseSettings, small, [f"{key}={name}"]), key) for key in keys for name in (long, short)
    }
    assert of_pictures == of_erasing == {"float32" if long == "float32" else short}
    assert {resolve(MakeSettings, {}, [f"dtype={name}"]).dtype for name in (long, short)} == {long}


@pytest.mark.parametrize(("long", "short"), NAMES)
def test_files_and_pictures_understand_either_name(tiny_model: Path, tmp_path: Path, long: str, short: str) -> None:
    found = [export(tiny_model, tmp_path / f"{name}.safetensors", precision=name) for name in (long, short)]
    assert [summary["precision"] for summary in found] == [long, long]
    one, other = (generate_images(tiny_model, ["a dog"], 3, steps=1, precision=name) for name in (long, short))
    assert torch.equal(one, other)
    assert torch.equal(one, generate_images(tiny_model, ["a dog"], 3, steps=1)) == (long == "float32")


def test_a_name_of_neither_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a precision of float32, float16, bfloat16 .*'half'"):
        export(tiny_model, tmp_path / "model.safetensors", precision="half")
    with pytest.raises(UserError, match=r"precision = \['fp16'\]"):
        resolve(DrawSettings, {"precision": ["fp16"]})
