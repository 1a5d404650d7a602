"""The *configuration folder* of a checkpoint in one file: a diffusers pipeline of the same family.

It says what the file does not: the shapes of the networks, the scheduler, the tokenizers. No weights of it are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from metaunlearn.errors import UserError, first_line
from metaunlearn.fetching import CONFIGURATION, fetch_command
from metaunlearn.files import read_json
from metaunlearn.models.checks import TOKENIZERS
from metaunlearn.models.components import check_index, described, lacking_vocabulary
from metaunlearn.models.layout import Family

XL = "StableDiffusionXLPipeline"


def called(folder: Path) -> str:
    """The configuration ``folder`` in a message."""
    return f"the configuration folder {folder} (config=..., --config DIR)"


def configuration_folder(path: Path, family: Family, given: Path | None) -> tuple[Path, dict[str, Any]]:
    """The configuration folder, checked, and its ``model_index.json``."""
    if given is not None:
        if not (given / "model_index.json").is_file():
            raise UserError(
                f"{called(given)} has no model_index.json; give a diffusers folder of the same family, such as "
                f"{family.repositories[0]}; its weights are not needed."
            )
        index = described(given / "model_index.json", given, called(given))
        check_index(index, called(given))
        found = index.get("_class_name")
        if found != family.pipeline:
            raise UserError(
                f"{called(given)} is a {found}'s, but {path} is a checkpoint of {family.name}, a {family.pipeline}."
            )
        return given, index
    for repository in family.repositories:
        cached = try_to_load_from_cache(repository, "model_index.json")
        if isinstance(cached, str) and _complete(Path(cached).parent, family):
            return Path(cached).parent, read_json(Path(cached))
    where = family.repositories[0]
    raise UserError(
        f"MODEL {path} is a checkpoint of {family.name}, which holds weights only: its tokenizer's vocabulary and its "
        "configuration are needed, too (a few MB, no weights). Fetch them where there is a network with\n"
        f"  {fetch_command(where, CONFIGURATION, folder='DIR')}\n"
        f"and turn the file into a folder that every command takes:\n"
        f"  metaunlearn import {path} --config DIR --out FOLDER"
    )


def _complete(folder: Path, family: Family) -> bool:
    parts = [part.component for part in family.parts] + ["scheduler"]
    whole = not any(lacking_vocabulary(folder / name, CLIPTokenizer) for name in tokenizers_of(family))
    return whole and all((folder / part).is_dir() for part in parts)


def tokenizers_of(family: Family) -> tuple[str, ...]:
    """The names of its pipeline's tokenizers."""
    return TOKENIZERS if family.pipeline == XL else TOKENIZERS[:1]


def empty_component(folder: Path, component: str) -> nn.Module:
    """A component of the configured shape whose parameters have no memory yet."""
    where = folder / component
    if not (where / "config.json").is_file():
        raise UserError(f"{called(folder)} has no {component}/config.json.")
    described(where / "config.json", folder, called(folder))
    try:
        with init_empty_weights(include_buffers=False):
            if component == "unet":
                return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(where, local_files_only=True))
            if component == "vae":
                return AutoencoderKL.from_config(AutoencoderKL.load_config(where, local_files_only=True))
            kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
            return kind(CLIPTextConfig.from_pretrained(where, local_files_only=True))
    except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{called(folder)} describes no {component} that can be made: {first_line(error)}.") from error
