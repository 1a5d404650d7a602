"""What a model is, as one word that changes when its weights do: of files their hash, of a hub id its revision."""

from __future__ import annotations

import functools
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from metaunlearn.bench import sources
from metaunlearn.bench.recipe import CANVAS
from metaunlearn.metrics.hub import Repository


@functools.cache
def pipeline_identity(model: str) -> str | None:
    """Of a base model; None when it is neither here nor in the hub's cache."""
    if model == CANVAS:
        return sources.files_hash(_canvas() / "pipeline")
    if Path(model).exists():
        return sources.files_hash(Path(model))
    return _cached(model, None, "model_index.json", "unet/*.safetensors")


@functools.cache
def judge_identity(judge: str) -> str | None:
    """Of a judge; None when it is neither here nor in the hub's cache."""
    if judge == CANVAS:
        return sources.files_hash(_canvas() / "judge")
    if Path(judge).exists():
        return sources.files_hash(Path(judge))
    return _cached(*Repository.parse(judge), "config.json", "model*.safetensors")


@functools.cache
def art_hash() -> str:
    """Of the emoji from which Canvas's real pictures are drawn."""
    return sources.files_hash(sources.ROOT / "canvas" / "art")


def _canvas() -> Path:
    from metaunlearn.canvas import weights_folder

    return weights_folder()


def _cached(model: str, revision: str | None, index: str, weights: str) -> str | None:
    found = try_to_load_from_cache(model, index, revision=revision) if model.count("/") == 1 else None
    # The cache keeps each revision in a folder named by its commit.
    there = isinstance(found, str) and any(Path(found).parent.glob(weights))
    return f"{model}@{Path(str(found)).parent.name}" if there else None
