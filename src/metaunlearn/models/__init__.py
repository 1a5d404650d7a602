"""From a MODEL, as users name it, to an adapter that the equations can use."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metaunlearn.devices import check_device
from metaunlearn.models.checks import check_pipeline
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.loading import load_pipeline
from metaunlearn.models.sd import StableDiffusion
from metaunlearn.models.sdxl import StableDiffusionXL

__all__ = [
    "StableDiffusion",
    "StableDiffusionXL",
    "TextToImageModel",
    "adapt",
    "device_for",
    "in_float32",
    "load",
    "load_pipeline",
    "own_pipeline",
    "read_only",
    "rebuilt",
    "with_own_denoiser",
]

ADAPTERS = {"StableDiffusionPipeline": StableDiffusion, "StableDiffusionXLPipeline": StableDiffusionXL}
"""By the pipeline's class; a further family is a file beside these and a row here and in ``checks.FAMILIES``."""


def load(model: Any, device: str | torch.device | None = None) -> TextToImageModel:
    """The adapter of ``model``: ``"canvas"``, a diffusers folder, a ``.safetensors`` file, a hub id, or a pipeline.

    A pipeline becomes the adapter's own: its networks are put into float32 and evaluation mode, without gradients.
    ``device`` is as for :func:`device_for`.
    """
    return adapt(load_pipeline(model), device)


def adapt(pipeline: Any, device: str | torch.device | None = None) -> TextToImageModel:
    """The adapter of a pipeline that is loaded already; UserError says what it lacks if it cannot work."""
    return ADAPTERS[check_pipeline(pipeline)](pipeline, device=check_device(device_for(pipeline, device)))


def device_for(model: Any, device: str | torch.device | None) -> str:
    """The ``device`` to work on; ``None``: where ``model`` is, which is the CPU if it is given by name."""
    if device is not None:
        return str(device)
    if isinstance(model, str | Path):
        return "cpu"
    found = getattr(getattr(load_pipeline(model), "unet", None), "device", torch.device("cpu"))
    # Of a pipeline whose networks come to a card one by one nothing is anywhere.
    return "cpu" if found.type == "meta" else str(found)


def own_pipeline(model: Any, *others: str, device: str | torch.device | None = None) -> Any:
    """A pipeline whose denoiser may be changed: loaded afresh, or around copies where the caller gave a pipeline.

    ``others`` are further components that may be changed, where it has them, e.g. ``"text_encoder_2"``; ``device`` is
    where it goes next.
    """
    pipeline = load_pipeline(model)
    return pipeline if isinstance(model, str | Path) else with_own_denoiser(pipeline, *others, device=device)


def read_only(model: Any, *, device: str | torch.device | None = None) -> Any:
    """A pipeline whose weights nobody changes: loaded afresh, or around the weights of a caller's pipeline.

    An adapter on ``device`` casts, moves and freezes none of the caller's own.
    """
    pipeline = load_pipeline(model)
    return pipeline if isinstance(model, str | Path) else _around(pipeline, (), device)


def with_own_denoiser(pipeline: Any, *others: str, device: str | torch.device | None = None) -> Any:
    """The same pipeline around a copy of its denoiser, and of ``others``: the caller's weights stay untouched.

    Copied, too, is what an adapter on ``device`` would cast or move. ``None``: it stays where it is.
    """
    return _around(pipeline, ("unet", *others), device)


def _around(pipeline: Any, changed: Collection[str], device: str | torch.device | None) -> Any:
    """The same pipeline around copies of the components ``changed``, and of what would be cast or moved.

    Of the other networks the modules are its own and the weights the pipeline's: whether a parameter wants a gradient,
    and whether a module is in evaluation mode, is the caller's affair.
    """
    check_pipeline(pipeline)
    own = {}
    for name, part in pipeline.components.items():
        if name in changed or not _ready(part, device):
            own[name] = copy.deepcopy(part)
        elif isinstance(part, nn.Module):
            own[name] = _sharing_weights(part)
    return rebuilt(pipeline, **own)


def _sharing_weights(module: nn.Module) -> nn.Module:
    """A copy of the module around the same memory."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    shared |= {id(buffer): buffer for buffer in module.buffers()}
    return copy.deepcopy(module, shared)


def in_float32(pipeline: Any) -> Any:
    """The pipeline itself, or one around float32 copies of those components that are in another precision."""
    check_pipeline(pipeline)
    parts = {name: part for name, part in pipeline.components.items() if not _ready(part)}
    own = {name: copy.deepcopy(part).float() for name, part in parts.items()}
    return rebuilt(pipeline, **own) if own else pipeline


def _ready(part: Any, device: str | torch.device | None = None) -> bool:
    """Whether a component is in float32, and on ``device``, or has no weights."""
    if not isinstance(part, nn.Module):
        return True
    wanted = None if device is None else torch.device(device)
    return all(
        p.dtype == torch.float32
        and (wanted is None or (p.device.type == wanted.type and wanted.index in (None, p.device.index)))
        for p in part.parameters()
    )


def rebuilt(pipeline: Any, kind: Any = None, **parts: Any) -> Any:
    """A pipeline of the same components but for ``parts``; ``kind`` is another class for it, of the same family."""
    components = {**pipeline.components, **parts}
    options = {"requires_safety_checker": False} if "safety_checker" in components else {}
    if "force_zeros_for_empty_prompt" in pipeline.config:
        options["force_zeros_for_empty_prompt"] = pipeline.config["force_zeros_for_empty_prompt"]
    twin = (kind or type(pipeline))(**components, **options)
    if hasattr(pipeline, "watermark"):  # Of XL: a new pipeline would decide by what is installed.
        twin.watermark = pipeline.watermark
    twin.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
    return twin
