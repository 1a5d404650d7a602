"""Drawing a data set with any text-to-image pipeline of diffusers; the result is an imagefolder.

Picture i has prompt i mod P and the seed ``seed`` + i, so that it is the same whoever draws it: shards of a set may be
drawn on several machines into one folder, and a killed run goes on.
"""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.contact_sheet import SHEET_PICTURES, contact_sheet
from metaunlearn.data.duplicates import find_duplicates
from metaunlearn.data.imagefolder import SHEET, picture_file, write_captions, write_pictures
from metaunlearn.data.prompts import PromptsGiven, prompts_of
from metaunlearn.data.recipes import MakeSettings, SetRecipe, recipe_named
from metaunlearn.devices import check_device
from metaunlearn.errors import RunError, UserError, first_line
from metaunlearn.files import needed_path, write_atomic, write_json
from metaunlearn.generation import Sampling, default_sampling, picture_size
from metaunlearn.locks import Locks
from metaunlearn.models import load_pipeline
from metaunlearn.models.autoencoder import as_rgb, decoding
from metaunlearn.models.unfiltered import unfiltered, without_bar
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.runs import Count, RunFolder, named
from metaunlearn.settings import resolve, whole_number
from metaunlearn.sharing import Shard

CHOSEN = "chosen.json"
"""In the state of a run whose pictures are all drawn: which of them stay."""
UNKNOWN = 1024 * 1024
"""Pixels of pictures whose size only the pipeline knows."""
SHEET_SIDE = 256
"""Pixels a side of a picture on the contact sheet, at most."""


def make_set(
    name: str,
    out: Path | str,
    *,
    generator: Any,
    prompts: PromptsGiven | None = None,
    overrides: Overrides = (),
    seed: int = 0,
    shard: str = "1/1",
    device: str = "cpu",
    resume: bool = False,
    progress: Count | None = None,
) -> dict[str, Any]:
    """Draw the data set ``name`` of ``data.recipes.RECIPES`` into ``out``, with a contact sheet and ``run.json``.

    ``generator`` is a pipeline, a diffusers folder, a ``.safetensors`` checkpoint of Stable Diffusion, a hub id in the
    cache, or ``canvas``; ``prompts`` take the place of the recipe's; ``overrides`` are keys of ``MakeSettings``. Each
    of several shards draws its share; the one that finds the set complete leaves out duplicates and writes
    ``metadata.jsonl``.
    Returns the summary; its ``pending`` counts the pictures that other shards have still to draw.
    """
    out, seed = needed_path(out, "out=, --out DIR"), whole_number(seed, "seed=, --seed")
    device = check_device(device)
    texts = _texts(name, recipe_named(name), prompts)
    settings = resolve(MakeSettings, {}, as_overrides(overrides))
    share = Shard.parse(shard)
    pipeline = _load(generator, settings.dtype)
    options = _call_options(pipeline, settings)
    rows = [(texts[index % len(texts)], seed + index) for index in range(settings.images)]
    request = {
        "command": "data make", "name": name,
        "generator": named(generator),
        "prompts": texts, "settings": settings.model_dump(), "seed": seed, "shards": share.count,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume or share.count > 1)
    if folder.complete_before:
        return {"out": str(out), **folder.summary()}
    pipeline.to(device)
    everything = range(len(rows))
    batches = [everything[first : first + settings.batch_size] for first in everything[:: settings.batch_size]]
    finished = [folder.state / f"{number:05d}" for number in range(len(batches))]
    mine = share.turns(len(batches))
    for done, number in enumerate(mine, start=1):
        if not finished[number].exists():
            batch = [rows[index] for index in batches[number]]
            write_pictures(out, _draw(pipeline, batch, options), batches[number])
            write_atomic(finished[number], "")
        if progress is not None:
            progress(done, len(mine))
    # Shards that end together all find the set drawn: one completes it, and the others wait for that.
    with Locks(folder.state).guard():
        if folder.complete:
            shutil.rmtree(folder.state, ignore_errors=True)  # The guard has made it anew.
            return {"out": str(out), "pending": 0, **folder.summary()}
        pending = sum(len(batch) for batch, file in zip(batches, finished, strict=True) if not file.exists())
        if pending:
            return {"out": str(out), "pending": pending}
        return {"out": str(out), "pending": 0, **_complete(folder, [text for text, _ in rows], settings)}


def _load(generator: Any, dtype: str) -> Any:
    """Any pipeline of diffusers, in ``dtype``; from the hub only what is in the cache."""
    if not isinstance(generator, str | Path):
        return generator
    if str(generator) == "canvas":
        from metaunlearn import canvas

        return canvas.load_pipeline()
    if Path(generator).is_file():
        return load_pipeline(generator).to(getattr(torch, dtype))
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(
            generator, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        raise UserError(
            f"The generator {generator} (generator=, --generator) cannot be loaded: {first_line(error)}. "
            "Expected a folder that diffusers saved, a .safetensors checkpoint, a hub id in the cache, or 'canvas'. "
            "Fetch one where there is a network: hf download ID --local-dir DIR."
        ) from error


def _texts(name: str, recipe: SetRecipe, prompts: PromptsGiven | None) -> list[str]:
    if prompts is None:
        if not recipe.prompts:
            raise UserError(
                f"The prompts of the data set {name!r} are not shipped; give your own (prompts=, --prompts FILE), "
                f"{'one prompt' if recipe.single else 'a line each'}."
            )
        return list(recipe.prompts)
    texts = [prompt.text for prompt in prompts_of(prompts)]
    if not texts or (recipe.single and len(texts) != 1):
        wanted = "exactly one prompt" if recipe.single else "at least one prompt"
        raise UserError(f"The data set {name!r} takes {wanted} (prompts=, --prompts), got {len(texts)}.")
    return texts


def _call_options(pipeline: Any, settings: MakeSettings) -> dict[str, Any]:
    """Arguments of the pipeline's call; those that nobody set are left to it."""
    wanted: dict[str, Any] = {
        "negative_prompt": settings.negative_prompt or None,
        "guidance_scale": settings.guidance_scale,
        "num_inference_steps": settings.steps,
        "height": settings.size,
        "width": settings.size,
    }
    known = inspect.signature(type(pipeline).__call__).parameters
    for argument, value in wanted.items():
        if value is not None and argument not in known and "kwargs" not in known:
            raise UserError(
                f"The generator (generator=, --generator) is a {type(pipeline).__name__}, which takes no {argument}; "
                "leave that setting (overrides=, --set) out."
            )
    asked = {argument: value for argument, value in wanted.items() if value is not None}
    return _own_size(pipeline) | _own_sampling(pipeline) | asked


def _own_size(pipeline: Any) -> dict[str, int]:
    """Height and width of a pipeline of oblong pictures, because XL's takes its own for square; else it knows best."""
    sampled = getattr(getattr(getattr(pipeline, "unet", None), "config", None), "sample_size", None)
    return dict(zip(("height", "width"), picture_size(pipeline), strict=True)) if isinstance(sampled, Sequence) else {}


def _own_sampling(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's folder says of sampling, as Canvas's does; nothing where it says nothing."""
    sampling = default_sampling(pipeline)
    if sampling == Sampling():
        return {}
    return {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance_scale}


@torch.no_grad()
def _draw(pipeline: Any, rows: Sequence[tuple[str, int]], options: dict[str, Any]) -> Tensor:
    """Pictures of (prompt, seed), (B, 3, H, W) in [0, 1]."""
    if "negative_prompt" in options:
        options = options | {"negative_prompt": [options["negative_prompt"]] * len(rows)}
    generators = [torch.Generator().manual_seed(seed) for _, seed in rows]
    with unfiltered(pipeline), without_bar(pipeline), _decoding(pipeline, len(rows), options):
        output = pipeline([text for text, _ in rows], generator=generators, output_type="pt", **options)
    images = as_rgb(output.images.float().cpu())
    if not bool(images.isfinite().all()):
        raise RunError("The generator (generator=, --generator) made pictures that are not finite numbers.")
    return images.clamp(0, 1)


def _decoding(pipeline: Any, pictures: int, options: dict[str, Any]) -> AbstractContextManager[None]:
    """Large pictures one by one, where the pipeline's autoencoder can; those of unknown size count as large."""
    vae = getattr(pipeline, "vae", None)
    if not hasattr(vae, "use_slicing"):
        return nullcontext()
    if "height" in options:
        pixels = options["height"] * options["width"]
    else:
        pixels = math.prod(picture_size(pipeline)) if hasattr(pipeline, "unet") else UNKNOWN
    return decoding(vae, pictures, pixels)


def _complete(folder: RunFolder, texts: Sequence[str], settings: MakeSettings) -> dict[str, Any]:
    """Leave out duplicates, and write captions, contact sheet and the final ``run.json``."""
    chosen = folder.state / CHOSEN
    if not chosen.exists():
        write_json(chosen, _chosen(folder, texts, settings))
    # From here on pictures may be gone: a run that is killed does not look at them again, but goes on leaving them out.
    facts: dict[str, Any] = json.loads(chosen.read_text(encoding="utf-8"))
    for duplicate in facts["duplicates"]:
        (folder.path / duplicate["file"]).unlink(missing_ok=True)
    folder.finish(**facts)
    return facts


def _chosen(folder: RunFolder, texts: Sequence[str], settings: MakeSettings) -> dict[str, Any]:
    """Which pictures are left out; captions and contact sheet are of the others."""
    files = [picture_file(folder.path, index) for index in range(len(texts))]
    duplicates = find_duplicates(files, nearest=settings.near_duplicates)
    left_out = {found.index for found in duplicates}
    kept = [index for index in range(len(files)) if index not in left_out]
    write_captions(folder.path, [files[index] for index in kept], [texts[index] for index in kept])
    contact_sheet([files[index] for index in kept][:SHEET_PICTURES], side=SHEET_SIDE).save(folder.path / SHEET)
    return {
        "images": len(kept),
        "duplicates": [{"file": files[found.index].name, "of": files[found.of].name, "bits": found.distance}
                       for found in duplicates],
        "sheet": SHEET,
    }  # fmt: skip
