"""A state of a model: a pipeline, or one whose denoiser lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metaunlearn.models.loading import load_pipeline


def with_denoiser(pipeline: Any, folder: Path) -> Any:
    """``pipeline`` with the denoiser that lies in ``folder``."""
    pipeline.unet = type(pipeline.unet).from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return pipeline


def load_state(base: str, erase: Path | None, attack: Path | None, step: int) -> Any:
    """``base``; or the model that erasing left in ``erase``; or that with the denoiser after ``step`` of ``attack``."""
    pipeline = load_pipeline(base if erase is None else erase)
    return pipeline if attack is None else with_denoiser(pipeline, attack / f"step-{step:06d}" / "unet")
