"""The components of a pipeline's folder, each loaded whole or refused by name.

diffusers and transformers fill what a damaged file lacks with random numbers, and make a tokenizer of nothing; either
would be measured, and published, as if it were the model.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from metaunlearn.errors import UserError, first_line
from metaunlearn.files import read_json
from metaunlearn.models.checks import FAMILIES, FUSE, TOKENIZERS, lacking
from metaunlearn.models.variants import variant_in
from metaunlearn.parameters import not_finite

logger = logging.getLogger(__name__)

NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
LIBRARIES = ("diffusers", "transformers")
RENAMED = {
    "_orig_mod.": "they were saved from a compiled model, whose names begin with _orig_mod.; save the model that it "
    "was compiled from (model._orig_mod)",
    ".base_layer.": f"an adapter (LoRA) was saved beside them; {FUSE}",
}
"""What names in a file tell of the others' lack."""
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
            raise UserError(lacking(index["_class_name"], [name]))
        if not (folder / name).is_dir():
            raise UserError(
                f"MODEL {folder} is incomplete: its model_index.json has a {name}, its folder has none. {AGAIN}"
            )
        for file in sorted((folder / name).glob("[!.]*.json")):  # A Mac leaves hidden ones beside.
            _check_described(folder, name, file)
        if name in TOKENIZERS and (lack := lacking_vocabulary(folder / name, _class_of(kind))):
            raise UserError(f"MODEL {folder} is incomplete: its {name} {lack}. {AGAIN}")


def _check_described(folder: Path, name: str, file: Path) -> None:
    found = described(file, folder, f"MODEL {folder}")
    if file.name == "adapter_config.json":
        raise UserError(
            f"MODEL {folder} has an adapter (LoRA) beside the weights of its {name} ({name}/{file.name}), which would "
            f"neither be erased nor saved: {FUSE}."
        )
    if "quantization_config" in found:
        raise UserError(
            f"MODEL {folder} has its {name} in few bits ({name}/{file.name} has a quantization_config), from which no "
            "gradient is taken; give the model that it was made from, in float32, float16 or bfloat16."
        )


def described(file: Path, folder: Path, where: str) -> dict[str, Any]:
    """The object in a JSON ``file`` of ``folder``, which a message calls ``where``; UserError when there is none."""
    try:
        found = read_json(file, otherwise=AGAIN)
    except UserError as error:
        raise UserError(f"{where} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is damaged: its {file.relative_to(folder)} holds no JSON object. {AGAIN}")
    return found


def lacking_vocabulary(folder: Path, kind: Any) -> str:
    """What the folder of a tokenizer of the class ``kind`` lacks, in words; nothing if its vocabulary is there.

    transformers makes a tokenizer of nothing.
    """
    files = dict(getattr(kind, "vocab_files_names", {}))
    whole = files.pop("tokenizer_file", "tokenizer.json")
    missing = [file for file in files.values() if not (folder / file).is_file()]
    if not missing or (folder / whole).is_file():
        return ""
    return f"has no vocabulary, neither {whole} nor {' and '.join(missing)}"


def check_index(index: Mapping[str, Any], where: str) -> None:
    """UserError unless each component that the ``model_index.json`` of ``where`` names is a library and a class."""
    for name in (*NETWORKS, *TOKENIZERS, "scheduler"):
        kind = index.get(name)
        pair = isinstance(kind, list) and len(kind) == 2 and all(part is None or isinstance(part, str) for part in kind)
        if kind is not None and not pair:
            raise UserError(
                f"{where} is damaged: its model_index.json has {kind!r} for its {name}; expected the names of a "
                f"library and of a class. {AGAIN}"
            )


def _class_of(kind: Any) -> Any:
    """What an entry of ``model_index.json`` names; None for what other libraries bring, and for no component."""
    if not kind or kind[0] not in LIBRARIES:
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
        cause = error.__cause__ or error.__context__
        why = f" ({first_line(cause)})" if cause is not None and str(cause) else ""
        raise UserError(f"MODEL {folder}: its {name} cannot be loaded: {first_line(error)}{why}. {AGAIN}") from error
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise UserError(f"MODEL {folder} is incomplete: {_lacking(name, missing, unknown)}")
    unknown = [key for key in unknown if not key.endswith("position_ids")]  # Of older versions, and no weights.
    if unknown:
        logger.warning(
            "MODEL %s has %d tensors in its %s that this class has no place for, such as %s; they are left out",
            folder, len(unknown), name, unknown[0],
        )  # fmt: skip
    check_finite(network, f"MODEL {folder} is damaged: its {name}'s")
    return network


def _lacking(name: str, missing: Sequence[str], unknown: Sequence[str]) -> str:
    """That the weights of a network lack some, and what may be why."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    lack = f"the weights of its {name} lack {missing[0]}{more}"
    for mark, why in RENAMED.items():
        if any(mark in key for key in unknown):
            return f"{lack}, because {why}."
    return f"{lack}. {AGAIN}"


def check_finite(network: Any, whose: str) -> None:
    """UserError, which begins with ``whose``, when a parameter is not finite: nothing good comes of such a model."""
    if broken := not_finite(network):
        more = f" and {len(broken) - 1} more of its tensors hold" if len(broken) > 1 else " holds"
        raise UserError(f"{whose} {broken[0]}{more} numbers that are not finite. {AGAIN}")
