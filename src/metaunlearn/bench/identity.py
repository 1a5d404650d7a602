"""What a model is, as one word that changes when its weights do: of files their hash, of a hub id its revision.

A process reads a file again where its size or its times are others than when it read it last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from metaunlearn.bench import sources
from metaunlearn.bench.cells import Cell
from metaunlearn.bench.recipe import CANVAS
from metaunlearn.bench.weights import path_in, weights_of
from metaunlearn.data.imagefolder import fingerprint
from metaunlearn.errors import UserError
from metaunlearn.files import files_hash, files_of
from metaunlearn.metrics.hub import Repository


def pipeline_identity(model: str) -> str | None:
    """Of a base model; None when it is neither here nor in the hub's cache."""
    path = _canvas() / "pipeline" if model == CANVAS else Path(model)
    return files_identity(path) if path.exists() else _cached(model, None, "model_index.json", "unet/*.safetensors")


def judge_identity(judge: str) -> str | None:
    """Of a judge; None when it is neither here nor in the hub's cache."""
    path = _canvas() / "judge" if judge == CANVAS else Path(judge)
    if path.exists():
        return files_identity(path)
    return _cached(*Repository.parse(judge), "config.json", "model*.safetensors")


def files_identity(path: Path) -> str:
    """Of a file of weights, or of all files of a folder."""
    return _read(files_hash, path, _stamps(path))


def pictures_identity(folder: Path) -> str:
    """Of an imagefolder."""
    return _read(fingerprint, folder, _stamps(folder))


@functools.cache
def art_hash() -> str:
    """Of the emoji from which Canvas's real pictures are drawn."""
    return files_hash(sources.ROOT / "canvas" / "art")


def check_inputs(cell: Cell) -> None:
    """UserError where a model, weights, or real pictures are not any more, or not on this machine, those that ``cell``
    was planned with."""
    for value, planned, here in _inputs(cell):
        if here != planned:
            what = "is not there" if here is None else f"is {here}, and this grid was planned with {planned}"
            raise UserError(
                f"{value} {what}: put it back, or start the grid again, and the same call plans anew. All that make "
                "cells must see the same under one path, or in one cache of the hub (use=[...], --use NAME=PATH)."
            )


def _inputs(cell: Cell) -> Iterator[tuple[str, str, str | None]]:
    """Where each lies or what it is called, and as one word what it was and what it is here."""
    call, spec = cell.call, cell.spec
    for role, identity in (("base", pipeline_identity), ("judge", judge_identity)):
        if call.get(role) and spec.get(role):  # A judge that nobody asks has no identity.
            yield call[role], spec[role], identity(call[role])
    if "success" in call:
        yield from _weights(spec["success"], call["success"], spec["weights"])
    for given, planned in zip(call.get("sets", ()), spec.get("sets", ()), strict=True):
        if given["reference"]:
            yield given["reference"], planned["reference"], _here(pictures_identity, given["reference"])
        for score, metric in planned["scores"].items():
            yield from _weights(metric, given["scores"][score], planned["weights"].get(weights_of(metric)))


def _weights(metric: str, given: str, planned: str) -> Iterator[tuple[str, str, str | None]]:
    """Of the ``metric`` of a recipe, ``given`` to a cell; nothing where it finds them itself."""
    if path := path_in(given, metric):
        yield path, planned, _here(files_identity, path)


def _here(identity: Callable[[Path], str], path: str) -> str | None:
    return identity(Path(path)) if Path(path).exists() else None


@functools.lru_cache(maxsize=64)
def _read(identity: Callable[[Path], str], path: Path, stamps: tuple[tuple[str, int, int, int], ...]) -> str:
    """``identity`` of ``path``, which is read once while its files have the same ``stamps``."""
    return identity(path)


def _stamps(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Of each file its name, its size, and when it was written and changed."""
    found = ((str(file), file.stat()) for file in files_of(path))
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


def _canvas() -> Path:
    from metaunlearn.canvas import weights_folder

    return weights_folder()


def _cached(model: str, revision: str | None, index: str, weights: str) -> str | None:
    found = try_to_load_from_cache(model, index, revision=revision) if model.count("/") == 1 else None
    # The cache keeps each revision in a folder named by its commit.
    there = isinstance(found, str) and any(Path(found).parent.glob(weights))
    return f"{model}@{Path(str(found)).parent.name}" if there else None
