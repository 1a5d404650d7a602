"""A checkpoint in the original layout, one ``.safetensors`` file, as a pipeline and back.

The file has weights only. What a pipeline needs beside them, the configurations and the tokenizer's vocabulary, comes
from a *configuration folder*: a diffusers pipeline of the same family, of which no weights are read. Nothing is
downloaded: the folder is given, or lies in the hub's cache.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from metaunlearn.errors import UserError
from metaunlearn.files import whole_or_absent
from metaunlearn.models.checks import check_channels
from metaunlearn.models.components import AGAIN, check_finite, lacking_vocabulary
from metaunlearn.models.configuration import XL, called, configuration_folder, empty_component, tokenizers_of
from metaunlearn.models.layout import (
    Family,
    Part,
    family_of_keys,
    family_of_pipeline,
    to_diffusers,
    to_original,
    usual_names,
)
from metaunlearn.models.layout.markers import marker_metadata, marker_tensors, said_by
from metaunlearn.models.pipeline_class import pipeline_class
from metaunlearn.models.trained_schedule import lost_by, trained_with

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCALES = (".scale_weight", ".scale_input", ".weight_scale", ".input_scale", "scaled_fp8")
"""In the names of what stands beside a weight of 8 bits, which means nothing without it."""
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
DECODERS_FIRST_LAYER = "first_stage_model.decoder.conv_in.weight"
"""What takes latents, and nothing else."""

logger = logging.getLogger(__name__)


def load_single_file(path: Path, config: Path | None = None) -> Any:
    """The pipeline in float32 that the file holds; ``config`` is the configuration folder, None: from the cache.

    Each tensor is read when it is needed and put into an empty module, so the weights are in memory once. Raises
    UserError when the file is no such checkpoint, lacks a tensor, or there is no configuration folder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = usual_names(file.keys())
            family = family_of_keys(names, str(path))
            _check_channels(file, names)
            _check_numbers(file, path)
            folder, index = configuration_folder(path, family, config)
            said = said_by(names, dict(file.metadata() or {}))
            modules = {
                part.component: _filled(empty_component(folder, part.component), part, file, names, path, folder)
                for part in family.parts
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"MODEL {path} cannot be read as a .safetensors file: {error}") from error
    for component, module in modules.items():
        check_finite(module, f"MODEL {path} is damaged: its {component}'s")
    return _assembled(family, folder, index, modules, _scheduler(path, family, folder, index, said))


def save_single_file(pipeline: Any, path: Path, *, dtype: torch.dtype = torch.float32) -> Family:
    """Write ``pipeline`` to ``path`` in the original layout, whole or not at all; return its family.

    ComfyUI and A1111 tell the family by the tensors that are there, and what it predicts by
    :mod:`~metaunlearn.models.layout.markers`.
    """
    family = family_of_pipeline(pipeline)
    tensors: dict[str, Tensor] = {}
    for part in family.parts:
        module = getattr(pipeline, part.component)
        own = dict(module.named_parameters())
        for link in part.linked(module):
            found = to_original(link, [own[name].detach() for name in link.diffusers])
            tensors[link.original] = found.to("cpu", dtype).contiguous()
    scheduler = pipeline.scheduler.config
    if family.pipeline == XL:
        tensors |= marker_tensors(scheduler)
    metadata = {"modelspec.architecture": family.name, **marker_metadata(scheduler), "format": "pt"}
    with whole_or_absent(path) as partial:
        save_file(tensors, partial, metadata)  # Not through bytes in memory: a checkpoint of XL has ten gigabytes.
    return family


def _check_channels(file: Any, names: dict[str, str]) -> None:
    """Refuse an inpainting file by itself: the configuration folder is another model's, but not to blame."""
    shapes = [file.get_slice(names[key]).get_shape() for key in (FIRST_LAYER, DECODERS_FIRST_LAYER) if key in names]
    if [len(shape) for shape in shapes] == [4, 4]:
        check_channels(shapes[0][1], shapes[1][1])


def _check_numbers(file: Any, path: Path) -> None:
    """Refuse weights that are a tensor's numbers only together with a scale beside it."""
    scaled = next((key for key in file.keys() if any(mark in key for mark in SCALES)), None)  # noqa: SIM118  # No mapping.
    if scaled is not None:
        raise UserError(
            f"MODEL {path} has weights in 8 bits with a scale beside them ({scaled}), as made for inference alone; "
            "give the checkpoint that it was made from, in float32, float16 or bfloat16."
        )


def _filled(module: Any, part: Part, file: Any, names: dict[str, str], path: Path, folder: Path) -> nn.Module:
    """``module`` with the file's tensors for its parameters, in float32 and in evaluation mode.

    ``names`` are those in the file, by their usual ones.
    """
    missing = sorted(link.original for link in part.linked(module) if link.original not in names)
    if missing:
        raise UserError(
            f"MODEL {path} lacks {len(missing)} tensors of its {part.component}, such as {missing[0]}; it is "
            f"incomplete, or the configuration folder {folder} is another model's (config=..., --config DIR)."
        )
    shapes = {name: p.shape for name, p in module.named_parameters()}
    state = {}
    for name, tensor in _tensors(module, part, file, names):
        if tensor.shape != shapes[name]:
            raise UserError(
                f"MODEL {path}: {part.component}'s {name} has shape {tuple(tensor.shape)}, but the configuration "
                f"folder {folder} (config=..., --config DIR) says {tuple(shapes[name])}; it is another model's."
            )
        if not tensor.is_floating_point():
            raise UserError(
                f"MODEL {path} has integers ({tensor.dtype}) for its {part.component}'s {name}: it is quantised. Give "
                "the checkpoint that it was made from, in float32, float16 or bfloat16."
            )
        state[name] = tensor.float().contiguous()
    module.load_state_dict(state, assign=True, strict=False)  # Buffers are made by the module itself.
    return module.eval().requires_grad_(False)


def _tensors(module: Any, part: Part, file: Any, names: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for link in part.linked(module):
        yield from zip(link.diffusers, to_diffusers(link, file.get_tensor(names[link.original])), strict=True)


def _scheduler(path: Path, family: Family, folder: Path, index: dict[str, Any], said: dict[str, Any]) -> Any:
    """The configured one, but for what the file itself says of what it predicts."""
    try:
        kind = getattr(diffusers, index["scheduler"][1])
        scheduler = kind.from_pretrained(folder / "scheduler", local_files_only=True)
    except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
        raise UserError(f"{called(folder)} has no scheduler that can be read: {error}") from error
    configured = trained_with(scheduler.config)["prediction_type"]
    if "prediction_type" not in said and family.ambiguous:
        logger.warning(
            "%s does not say what it predicts, as files of %s may do either; taken from %s: %s",
            path, family.name, folder, configured,
        )  # fmt: skip
    if said.get("prediction_type", configured) != configured:
        logger.warning(
            "%s predicts %s, as it says itself; %s, which says %s, is not followed in that",
            path, said["prediction_type"], folder, configured,
        )  # fmt: skip
    found = kind.from_config(scheduler.config, **said)
    if lost := lost_by(found, said):
        raise UserError(
            f"MODEL {path} says {', '.join(lost)} of its schedule, but the {kind.__name__} of the configuration folder "
            f"{folder} (config=..., --config DIR) has no such setting and would draw with other noise levels than the "
            "model was trained on. Give a folder with a scheduler that has it, such as a DDIMScheduler or an "
            "EulerDiscreteScheduler (in its model_index.json and its scheduler/scheduler_config.json)."
        )
    return found


def _assembled(family: Family, folder: Path, index: dict[str, Any], modules: dict[str, Any], scheduler: Any) -> Any:
    names = tokenizers_of(family)
    for name in names:
        if lack := lacking_vocabulary(folder / name, CLIPTokenizer):
            raise UserError(f"{called(folder)} is incomplete: its {name} {lack}. {AGAIN}")
    try:
        tokenizers = {name: CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in names}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{called(folder)} has no tokenizer that can be read: {error}") from error
    parts: dict[str, Any] = {**modules, **tokenizers, "scheduler": scheduler}
    if family.pipeline == XL:
        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return pipeline_class(XL)(
            **parts, force_zeros_for_empty_prompt=zeros, add_watermarker=index.get("add_watermarker")
        )
    return pipeline_class(family.pipeline)(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
