"""How a judge's images are scaled, beside transformers' own image processors of the same configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    MobileViTImageProcessorPil,
    ViTImageProcessorPil,
)

from metaunlearn.errors import UserError
from metaunlearn.metrics.preprocessing import ImageProcessor, Preprocessing, scaling_of

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OTHERS = {
    "resnet": ({"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 56, **IMAGENET},
               ConvNextImageProcessorPil(size={"shortest_edge": 56}, crop_pct=0.875, **IMAGENET)),
    "vit": ({"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 2, **HALF},
            ViTImageProcessorPil(size={"height": 32, "width": 32}, **HALF)),
    "a network for [-1, 1]": (
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 32, "width": 32}, "do_normalize": False,
         "rescale_factor": 1 / 127.5}, ViTImageProcessorPil(
             size={"height": 32, "width": 32}, do_normalize=False, rescale_factor=1 / 127.5)),
    "mobilevit": ({"feature_extractor_type": "MobileViTFeatureExtractor", "do_flip_channel_order": True, "size": 36,
                   "crop_size": 32, "resample": 2},
                  MobileViTImageProcessorPil(
                      resample=2, size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})),
}  # fmt: skip
"""A configuration, and the image processor that it is of."""


def configured(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


def pictures(height: int, width: int) -> Tensor:
    """Two smooth ones, of 8 bits."""
    coarse = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").mul(255).round() / 255


def theirs(processor: Any, images: Tensor) -> Tensor:
    arrays = list(images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    found: Tensor = processor(arrays, return_tensors="pt")["pixel_values"]
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_of_model_has_its_own_scaling(name: str, tmp_path: Path) -> None:
    config, processor = OTHERS[name]
    scaling = scaling_of(configured(tmp_path, config), clip=False)
    assert scaling is not None
    images = pictures(64, 96)
    assert torch.equal(scaling(images), theirs(processor, images))


@pytest.mark.parametrize("size", [(64, 64), (54, 80), (47, 101), (101, 47)])
def test_clips_way_is_transformers_to_a_step_of_eight_bits(size: tuple[int, int], tmp_path: Path) -> None:
    config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    scaling = scaling_of(configured(tmp_path, config), clip=True)
    assert isinstance(scaling, Preprocessing)
    images = pictures(*size)
    reference = theirs(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), images)
    step = 1 / 255 / 0.26
    assert (scaling(images) - reference).abs().max() < 1.5 * step


@pytest.mark.parametrize(
    "more",
    [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"crop_pct": 0.9}, {"size": {"longest_edge": 32}}],
)  # fmt: skip
def test_what_is_not_clips_way_is_left_to_transformers(more: dict[str, Any], tmp_path: Path) -> None:
    plain = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    assert isinstance(scaling_of(configured(tmp_path, {**plain, **more}), clip=True), ImageProcessor)


def test_a_processor_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"how to scale images .* cannot be made out: .*Expected a preprocessor_config"):
        scaling_of(configured(tmp_path, {"image_processor_type": "Nobodys", "size": 3}), clip=True)
