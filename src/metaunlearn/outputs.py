"""From names to a result folder: what ``generate`` and ``evaluate`` of the command line do."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metaunlearn.data.imagefolder import to_uint8, write_imagefolder
from metaunlearn.data.prompts import Prompt, read_prompts
from metaunlearn.draws import draws_for, make_pictures
from metaunlearn.errors import UserError
from metaunlearn.generation import default_sampling
from metaunlearn.models import load
from metaunlearn.runs import RunFolder

Progress = Callable[[int, int], None]

SHEET_FILE = "sheet.png"
SHEET_PICTURES = 100
"""A contact sheet shows at most this many pictures."""
SHEET_GAP = 4
"""Pixels between two pictures of a sheet."""


def generate_into(
    model: str,
    prompts: Sequence[str] | Path,
    out: Path,
    *,
    images: int = 1,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """``images`` pictures of each prompt as an imagefolder in ``out``, with ``sheet.png`` and ``run.json``.

    ``prompts`` are texts, or a file as :func:`~metaunlearn.data.prompts.read_prompts` takes it. Returns the summary.
    """
    rows = read_prompts(prompts) if isinstance(prompts, Path) else [Prompt(text) for text in prompts]
    if not rows:
        raise UserError("expected at least one prompt (--prompt TEXT or --prompts FILE), got none.")
    if images < 1:
        raise UserError(f"expected at least 1 picture of each prompt (images=, --images), got {images}.")
    adapter = load(model, device)
    pipeline = adapter.pipeline
    sampling = default_sampling(pipeline)
    draws = draws_for(rows, images=images, seed=seed, guidance_scale=sampling.guidance_scale)
    request = {
        "command": "generate",
        "model": model,
        "weights": adapter.fingerprint(),
        "images": [[draw.text, draw.seed, draw.guidance_scale] for draw in draws],
        "steps": sampling.steps,
    }
    folder = RunFolder.open(out, request, resume=resume)
    if folder.complete_before:
        return {"out": str(out), **folder.summary()}
    pictures = make_pictures(
        pipeline, draws, steps=sampling.steps, kept=folder.state, progress=folder.watched(progress)
    )
    write_imagefolder(out, pictures, [draw.text for draw in draws], overwrite=True)
    contact_sheet(pictures[:SHEET_PICTURES]).save(out / SHEET_FILE)
    folder.finish(images=len(pictures), image_size=list(pictures.shape[2:]), sheet=SHEET_FILE)
    return {"out": str(out), **folder.summary()}


def evaluate_into(
    model: str,
    prompts: Path,
    out: Path,
    *,
    metrics: Sequence[str],
    judge: str = "canvas",
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | None = None,
    images: int = 1,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score ``model`` on the prompts of a file; ``out`` gets ``results.json``, the pictures and ``run.json``.

    Returns ``results.json``'s content under ``"results"``.
    """
    from metaunlearn.evaluation import RESULTS, check_metrics, plan
    from metaunlearn.metrics.judge import load_judge

    check_metrics(metrics)
    rows = read_prompts(prompts)
    adapter = load(model, device)
    labels = [] if concept is None else [concept, *alternatives]
    evaluation = plan(
        adapter.pipeline,
        rows,
        metrics=metrics,
        judge=load_judge(judge, labels=labels, device=device),
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        images_per_prompt=images,
    )
    request = {
        "command": "evaluate",
        "model": model,
        "weights": adapter.fingerprint(),
        "prompts": hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "metrics": list(metrics),
        "judge": judge,
        "concept": concept,
        "alternatives": list(alternatives),
        "reference": None if reference is None else str(reference),
        "images": images,
        "seed": seed,
    }
    folder = RunFolder.open(out, request, resume=resume)
    if not folder.complete_before:
        scores = evaluation.run(adapter.pipeline, out=out, kept=folder.state, progress=folder.watched(progress))
        folder.finish(metrics=list(scores))
    return {"out": str(out), "results": json.loads((out / RESULTS).read_text())}


def contact_sheet(images: Tensor) -> Image.Image:
    """``images`` (N, 3, H, W) in [0, 1], in reading order on a nearly square white sheet."""
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    size = (columns * (width + SHEET_GAP) - SHEET_GAP, lines * (height + SHEET_GAP) - SHEET_GAP)
    sheet = Image.new("RGB", size, "white")
    for index, pixels in enumerate(to_uint8(images)):
        corner = (index % columns * (width + SHEET_GAP), index // columns * (height + SHEET_GAP))
        sheet.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), corner)
    return sheet
