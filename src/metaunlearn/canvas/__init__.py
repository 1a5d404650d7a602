"""Canvas, the embedded model: a small Stable Diffusion of emoji (objects x styles), and a small CLIP that judges it."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["load_judge", "load_pipeline", "weights_folder"]


def weights_folder() -> Path:
    """Where the shipped half-precision weights lie: ``pipeline/`` and ``judge/``."""
    return Path(str(resources.files("metaunlearn.canvas") / "weights"))


def load_pipeline() -> StableDiffusionPipeline:
    """Canvas as an ordinary diffusers pipeline, cast to float32; UserError when a tensor of it is missing."""
    from metaunlearn.models.loading import load_folder

    pipeline: StableDiffusionPipeline = load_folder(weights_folder() / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def load_judge() -> tuple[Any, Any]:
    """The judge, ``(CLIPModel, CLIPTokenizer)``; its pictures are 64 x 64, RGB scaled to [-1, 1]."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    folder = weights_folder() / "judge"
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    return model.eval().requires_grad_(False), CLIPTokenizer.from_pretrained(folder, local_files_only=True)
