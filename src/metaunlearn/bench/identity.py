"""What a model is, as one word that changes when its weights do: of files their hash, of a hub id its revision."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from metaunlearn.bench import sources
from metaunlearn.bench.cells import Cell
from metaunlearn.bench.recipe import CANVAS
from metaunlearn.data.imagefolder import fingerprint
from metaunlearn.errors import UserError
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


def check_inputs(cell: Cell) -> None:
    """UserError where this machine has something else in the place of a model, or of real pictures, that ``cell`` was
    planned with."""
    for value, planned, here in _inputs(cell):
        if here != planned:
            what = "is not there" if here is None else f"is {here}, and the grid was planned with {planned}"
            raise UserError(
                f"{value} {what} on this machine: all that make cells must see the same under one path, or in one "
                "cache of the hub (use=[...], --use NAME=PATH)."
            )


def _inputs(cell: Cell) -> Iterator[tuple[str, str, str | None]]:
    """Where each lies or what it is called, and as one word what it was and what it is here."""
    call, spec = cell.call, cell.spec
    for role, identity in (("base", pipeline_identity), ("judge", judge_identity)):
        if call.get(role) and spec.get(role):  # A judge that nobody asks has no identity.
            yield call[role], spec[role], identity(call[role])
    for given, planned in zip(call.get("sets", ()), spec.get("sets", ()), strict=True):
        if given["reference"]:
            yield given["reference"], planned["reference"], _fingerprint(given["reference"])


@functools.cache
def _fingerprint(folder: str) -> str:
    return fingerprint(folder)


def _canvas() -> Path:
    from metaunlearn.canvas import weights_folder

    return weights_folder()


def _cached(model: str, revision: str | None, index: str, weights: str) -> str | None:
    found = try_to_load_from_cache(model, index, revision=revision) if model.count("/") == 1 else None
    # The cache keeps each revision in a folder named by its commit.
    there = isinstance(found, str) and any(Path(found).parent.glob(weights))
    return f"{model}@{Path(str(found)).parent.name}" if there else None
