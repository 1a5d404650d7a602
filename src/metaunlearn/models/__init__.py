"""From a MODEL, as users name it, to an adapter that the equations can use."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import HfApi

from metaunlearn.errors import UserError
from metaunlearn.models.sd import StableDiffusion

__all__ = ["StableDiffusion", "adapt", "load", "load_pipeline", "with_own_denoiser"]

CANVAS = "canvas"
HUB_SECONDS = 10
"""How long the hub may take to say whether it has a model."""


def load(model: str | Path | StableDiffusionPipeline, device: str | torch.device = "cpu") -> StableDiffusion:
    """The adapter of ``model``: ``"canvas"``, a diffusers folder, a ``.safetensors`` file, a hub id, or a pipeline."""
    return adapt(load_pipeline(model), device)


def adapt(pipeline: Any, device: str | torch.device = "cpu") -> StableDiffusion:
    """The adapter of a pipeline that is loaded already."""
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise UserError(
            f"MODEL is a {type(pipeline).__name__}; this release handles StableDiffusionPipeline "
            "(Stable Diffusion 1.x, 2.x)."
        )
    return StableDiffusion(pipeline, device=device)


def load_pipeline(model: str | Path | StableDiffusionPipeline) -> Any:
    """The diffusers pipeline that ``model`` names, in float32; only a hub id that is not in the cache is downloaded."""
    if not isinstance(model, str | Path):
        return model
    if str(model) == CANVAS:
        from metaunlearn import canvas

        return canvas.load_pipeline()
    path = Path(model)
    if path.is_file():
        return _load_single_file(path)
    if path.is_dir():
        return _load_folder(path)
    return _load_from_hub(str(model))


def with_own_denoiser(pipeline: Any, *others: str) -> Any:
    """The same pipeline around a copy of its denoiser, so that the caller's weights stay untouched.

    ``others`` are further components to copy, e.g. ``"text_encoder"``.
    """
    if not hasattr(pipeline, "unet"):
        return pipeline
    parts = {**pipeline.components, **{name: copy.deepcopy(getattr(pipeline, name)) for name in ("unet", *others)}}
    twin = type(pipeline)(**parts, requires_safety_checker=False)
    twin.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
    return twin


def _load_folder(path: Path) -> Any:
    index = path / "model_index.json"
    if not index.exists():
        raise UserError(
            f"MODEL {path} is a folder without model_index.json, so it is no diffusers pipeline; "
            "give the folder that save_pretrained wrote, a .safetensors file, a hub id, or 'canvas'."
        )
    try:
        json.loads(index.read_text())
        return DiffusionPipeline.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, local_files_only=True, safety_checker=None
        )
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        raise UserError(f"MODEL {path} cannot be loaded as a diffusers pipeline: {error}") from error


def _load_single_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        raise UserError(f"MODEL {path} is not a .safetensors file; pickled checkpoints (.ckpt, .pt, .bin) are refused.")
    try:
        return StableDiffusionPipeline.from_single_file(path, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"MODEL {path} cannot be loaded as a Stable Diffusion checkpoint: {error}") from error


def _load_from_hub(model: str) -> Any:
    looks_like_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not looks_like_id:
        raise UserError(
            f"MODEL {model!r} does not exist: no such folder or file, and no hub id. 'canvas' always works."
        )
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "safety_checker": None}
    try:
        return DiffusionPipeline.from_pretrained(model, local_files_only=True, **options)
    except (OSError, ValueError):
        pass  # Not in the cache, or not all of it.
    try:
        # Asked first because one request fails at once where there is no network; a download tries for long.
        HfApi().model_info(model, timeout=HUB_SECONDS)
        return DiffusionPipeline.from_pretrained(model, **options)
    except Exception as error:  # Which HTTP library's errors these are depends on huggingface_hub's version.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"MODEL {model!r} is no folder here, is not in the cache and could not be had from the hub: {reason}. "
            f"Fetch it where there is a network (hf download {model} --local-dir DIR) and give the folder."
        ) from error
