"""From what a user calls MODEL to a diffusers pipeline in float32; a pickle is never opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from metaunlearn.errors import UserError, first_line
from metaunlearn.fetching import CARD, HUB_SECONDS, SAMPLING_FILE, ways_to_fetch
from metaunlearn.files import path_of, read_json
from metaunlearn.models.checks import REFINER, TOKENIZERS, check_class, is_refiner
from metaunlearn.models.components import NETWORKS, check_index, described, networks
from metaunlearn.models.pipeline_class import pipeline_class
from metaunlearn.models.variants import variants_of
from metaunlearn.records import unfinished

CANVAS = "canvas"
HOW_IT_WAS_LOADED = ("local_files_only", "is_local")
"""Of a tokenizer."""


def load_pipeline(model: Any) -> Any:
    """The diffusers pipeline that ``model`` names, in float32; only a hub id that is not in the cache is downloaded.

    ``model`` is ``"canvas"``, a diffusers folder, a ``.safetensors`` file in the original layout, or a hub id; a
    pipeline is returned as it is, and so is that of what ``load`` or ``erase`` returned. UserError when there is none,
    or one that cannot be worked with.
    """
    if not isinstance(model, str | Path):
        pipeline = getattr(model, "pipeline", model)
        if not hasattr(pipeline, "config"):
            check_class(type(pipeline).__name__)
        return pipeline
    if str(model) == CANVAS:
        from metaunlearn import canvas

        return canvas.load_pipeline()
    path = path_of(model)
    if path.is_file():
        return _load_single_file(path)
    if path.is_dir():
        return load_folder(path)
    return _load_from_hub(str(model))


def load_folder(path: Path) -> Any:
    """The pipeline that ``save_pretrained`` wrote to ``path``, each component in whatever variant lies there."""
    index = path / "model_index.json"
    if not index.exists():
        raise UserError(
            f"MODEL {path} is a folder without model_index.json, so it is no diffusers pipeline; "
            f"give the folder that save_pretrained wrote, a .safetensors file, a hub id, or 'canvas'.{unfinished(path)}"
        )
    try:
        named = described(index, path, f"MODEL {path}")
        check_index(named, f"MODEL {path}")
        options = _options(named)
        parts = networks(path, named)
        # Absolute, because how it is sampled is looked up there at every drawing, wherever the process is by then.
        pipeline = DiffusionPipeline.from_pretrained(path.absolute(), local_files_only=True, **options, **parts)
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        raise UserError(f"MODEL {path} cannot be loaded as a diffusers pipeline: {first_line(error)}.") from error
    for name in TOKENIZERS:
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            for key in HOW_IT_WAS_LOADED:  # transformers would write it into what is saved.
                tokenizer.init_kwargs.pop(key, None)
    return pipeline


def _options(index: Mapping[str, Any]) -> dict[str, Any]:
    """How to load the pipeline of this ``model_index.json``; refuses before gigabytes are read."""
    name = str(index.get("_class_name", "pipeline without a class"))
    first = (index.get("text_encoder", [1]) or [None])[0]
    if is_refiner(name, aesthetics=index.get("requires_aesthetics_score"), text_encoder=first):
        raise UserError(REFINER)
    check_class(name)
    pipeline_class(name)  # Imported in peace, before diffusers does it.
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    # A component that is given, as None, is neither read nor downloaded.
    without = {"safety_checker": None, "requires_safety_checker": False}
    return options | (without if "safety_checker" in index else {})


def _download(model: str, variants: Mapping[str, str | None], options: Mapping[str, Any]) -> Path:
    """The folder in the cache with every component in its own variant; ``variants``: by component."""
    folders = set()
    for variant in dict.fromkeys(variants.values()):
        # diffusers downloads one variant at a time, and nothing of a component that it is given.
        others = {name: None for name, own in variants.items() if own != variant}
        folders.add(DiffusionPipeline.download(model, variant=variant, **{**options, **others}))
    (folder,) = folders
    return Path(folder)


def _load_single_file(path: Path) -> Any:
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"MODEL {path} is not a .safetensors file; pickled checkpoints (.ckpt, .pt, .bin) are refused.")
    from metaunlearn.models.singlefile import load_single_file

    return load_single_file(path)


def _load_from_hub(model: str) -> Any:
    looks_like_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not looks_like_id:
        raise UserError(
            f"MODEL {model!r} does not exist: no such folder or file, and no hub id. 'canvas' always works."
        )
    index = try_to_load_from_cache(model, "model_index.json")
    lacks = ""
    if isinstance(index, str):
        _options(read_json(Path(index)))  # What cannot be worked with needs no download, either.
        try:
            return load_folder(Path(index).parent)
        except UserError as error:
            lacks = f" ({error})"
    try:
        # Asked first because one request fails at once where there is no network; a download tries for long.
        files = [file.rfilename for file in HfApi().model_info(model, timeout=HUB_SECONDS).siblings or []]
        variants = variants_of(files, model, NETWORKS)
        options = _options(DiffusionPipeline.load_config(model))
        # Beside the components and before them: what is whole in the cache is not asked for again.
        for name in (CARD, SAMPLING_FILE):
            if name in files:
                hf_hub_download(model, name)
        return load_folder(_download(model, variants, options))
    except UserError:
        raise
    except Exception as error:  # Which HTTP library's errors these are depends on huggingface_hub's version.
        raise UserError(
            f"MODEL {model!r} is no folder here, is not whole in the cache{lacks} and could not be had from the hub: "
            f"{first_line(error)}. Fetch it where there is a network ({ways_to_fetch(model, folder='DIR')}) "
            "and give the folder."
        ) from error
