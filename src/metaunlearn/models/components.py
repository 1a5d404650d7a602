"""The components of a pipeline's folder, each loaded whole or refused by name.

diffusers and transformers fill what a damaged file lacks with random numbers, and make a tokenizer of nothing; either
would be measured, and published, as if it were the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from metaunlearn.errors import UserError, first_line
from metaunlearn.files import read_json
from metaunlearn.models.checks import FAMILIES, TOKENIZERS
from metaunlearn.models.variants import variant_in

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
LIBRARIES = ("diffusers", "transformers")
AGAIN = "Copy or download it again, whole, or give another MODEL."


def networks(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The networks that ``index``, the folder's ``model_index.json``, names, by component, in float32.

    Each in a variant of its own. UserError when a component of the pipeline's family is missing or incomplete.
    """
    variant_in(folder, "unet")  # A folder without a denoiser is no model at all: said first.
    _check_folders(folder, index)
    return {name: _network(folder, name, kind) for name in NETWORKS if (kind := _class_of(index.get(name))) is not None}


def _check_folders(folder: Path, index: Mapping[str, Any]) -> None:
    for name in FAMILIES[index["_class_name"]]:
        kind = index.get(name)
        if not kind or kind[0] is None:
            continue  # check_pipeline says so.
        if not (folder / name).is_dir():
            raise UserError(
                f"MODEL {folder} is incomplete: its model_index.json has a {name}, its folder has none. {AGAIN}"
            )
        for file in sorted((folder / name).glob("[!.]*.json")):  # A Mac leaves hidden ones beside.
            if not isinstance(read_json(file), dict):
                raise UserError(f"MODEL {folder} is damaged: {name}/{file.name} holds no JSON object. {AGAIN}")
        if name in TOKENIZERS:
            _check_vocabulary(folder / name, _class_of(kind))


def _check_vocabulary(folder: Path, kind: Any) -> None:
    files = dict(getattr(kind, "vocab_files_names", {}))
    whole = files.pop("tokenizer_file", "tokenizer.json")
    missing = [file for file in files.values() if not (folder / file).is_file()]
    if missing and not (folder / whole).is_file():
        raise UserError(
            f"MODEL {folder.parent} is incomplete: its {folder.name} has no vocabulary, neither {whole} nor "
            f"{' and '.join(missing)}. {AGAIN}"
        )


def _class_of(kind: Any) -> Any:
    """What an entry of ``model_index.json`` names; None for what other libraries bring, and for no component."""
    if not isinstance(kind, list) or kind[0] not in LIBRARIES:
        return None
    return getattr(importlib.import_module(kind[0]), kind[1], None)


def _network(folder: Path, name: str, kind: Any) -> Any:
    variant = variant_in(folder, name)
    try:
        network, found = kind.from_pretrained(
            str(folder), subfolder=name, variant=variant, dtype=torch.float32, use_safetensors=True,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"MODEL {folder}: its {name} cannot be loaded: {first_line(error)}. {AGAIN}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"MODEL {folder} is incomplete: the weights of its {name} lack {missing[0]}{more}. {AGAIN}")
    return network
