"""From images in [0, 1] to what a vision model was trained on, as the configuration beside its weights says it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BILINEAR = 2
"""Pillow's number for it, which preprocessor configurations use."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From images in [0, 1] to what a vision model was trained on."""

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
            target = (max(round(height * scale), self.resize), max(round(width * scale), self.resize))
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


def read_preprocessor(folder: str | Path) -> dict[str, Any] | None:
    """The image processor's configuration in ``folder`` as plain JSON; ``None`` when it has none.

    Read as a file, because building transformers' own image processors may need torchvision.
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
