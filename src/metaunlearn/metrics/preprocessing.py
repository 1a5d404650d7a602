"""From images in [0, 1] to what a vision model was trained on, as the configuration beside its weights says it.

CLIP's way, which CLIPModels, the safety checker and Canvas's judge have, is computed here, where the images are. Any
other is that of transformers' own image processor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.data.imagefolder import to_uint8
from metaunlearn.errors import UserError, first_line

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BILINEAR = 2
"""Pillow's number for it, which preprocessor configurations use."""
CLIPS = {
    "crop_size", "do_center_crop", "do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean",
    "image_std", "resample", "rescale_factor", "size",
}  # fmt: skip
"""The keys of CLIP's image processor that say how an image is scaled."""
SAYS_NOTHING = {
    "_valid_processor_keys", "data_format", "feature_extractor_type", "image_processor_type", "input_data_format",
    "processor_class", "return_tensors",
}  # fmt: skip
KIND = re.compile("(FeatureExtractor|ImageProcessor)(Fast|Pil)?$")

Scaling = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] to (B, 3, h, w), normalised."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """CLIP's way."""

    resize: int | tuple[int, int] | None
    """The shorter side, or (height, width); ``None``: as they come."""
    crop: tuple[int, int] | None = None
    """(height, width) of the centre."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bicubic"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Read the keys of transformers' ``preprocessor_config.json``."""
        resize = _size(config.get("size")) if config.get("do_resize", True) else None
        crop = _size(config.get("crop_size")) if config.get("do_center_crop", "crop_size" in config) else None
        normalise = config.get("do_normalize", True)
        return cls(
            resize=resize,
            crop=(crop, crop) if isinstance(crop, int) else crop,
            mean=tuple(config.get("image_mean") or CLIP_MEAN) if normalise else cls.mean,
            std=tuple(config.get("image_std") or CLIP_STD) if normalise else cls.std,
            mode="bilinear" if config.get("resample") == BILINEAR else "bicubic",
        )

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, 3, h, w), normalised."""
        height, width = images.shape[-2:]
        if isinstance(self.resize, int):
            scale = self.resize / min(height, width)
            # Cut, not rounded: so does transformers.
            target = (max(int(height * scale), self.resize), max(int(width * scale), self.resize))
        else:
            target = self.resize or (height, width)
        if target != (height, width):
            # Clamped: bicubic weights overshoot at edges, where Pillow's 8-bit result cannot.
            images = F.interpolate(images, size=target, mode=self.mode, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(target, self.crop, strict=True))
            images = images[..., max(top, 0) : max(top, 0) + self.crop[0], max(left, 0) : max(left, 0) + self.crop[1]]
        shape = (1, 3, 1, 1)
        return (images - images.new_tensor(self.mean).view(shape)) / images.new_tensor(self.std).view(shape)


class ImageProcessor:
    """transformers' own image processor of the model in ``folder``, on Pillow, for images of 8 bits."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoImageProcessor

        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"how to scale images for the model in {folder} cannot be made out: {first_line(error)}. Expected a "
                f"{PREPROCESSOR} that transformers can read."
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """As :data:`Scaling`."""
        arrays = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
        scaled: Tensor = self.processor(list(arrays), return_tensors="pt")["pixel_values"]
        return scaled.to(images.device, torch.float32)


def scaling_of(folder: str | Path, *, clip: bool) -> Scaling | None:
    """How images are scaled for the model in ``folder``; None when nothing there says it.

    ``clip``: where the kind of image processor is not named, it is CLIP's.
    """
    config = read_preprocessor(folder)
    if config is None:
        return None
    return Preprocessing.from_config(config) if _is_clips(config, unnamed=clip) else ImageProcessor(folder)


def _is_clips(config: Mapping[str, Any], *, unnamed: bool) -> bool:
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    if not (unnamed if named is None else KIND.sub("", named) == "CLIP"):
        return False
    size = config.get("size", 0)
    usual = not isinstance(size, Mapping) or set(size) in ({"shortest_edge"}, {"height", "width"})
    scaled = config.get("do_rescale", True) and math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255)
    return usual and scaled and not set(config) - CLIPS - SAYS_NOTHING


def read_preprocessor(folder: str | Path) -> dict[str, Any] | None:
    """The image processor's configuration in ``folder`` as plain JSON; ``None`` when it has none.

    Read as a file: what it says decides which way images are scaled.
    """
    for name in (PREPROCESSOR, PROCESSOR):
        file = Path(folder) / name
        if file.is_file():
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            config = config.get("image_processor", config)
            if "size" in config or "image_mean" in config:
                return config
    return None


def _size(size: Any) -> int | tuple[int, int] | None:
    """transformers writes sizes as 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        return (int(size["height"]), int(size["width"]))
    return None if size is None else int(size)
