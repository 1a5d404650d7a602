"""From names to a result folder: what ``generate`` and ``evaluate`` of the command line do."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from metaunlearn.data.imagefolder import SHEET
from metaunlearn.data.prompts import Prompt, read_prompts
from metaunlearn.draws import DrawSettings, check_asked, draw_into, draws_for, sampling_of
from metaunlearn.errors import UserError
from metaunlearn.files import sha256
from metaunlearn.models import load
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import RESULTS_FILE, Count, RunFolder
from metaunlearn.settings import resolve

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
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """``images`` pictures of each prompt as an imagefolder in ``out``, with ``sheet.png`` and ``run.json``.

    ``prompts`` are texts, or a file as :func:`~metaunlearn.data.prompts.read_prompts` takes it; ``steps``,
    ``guidance_scale`` (before a prompt's own) and ``overrides`` say how they are drawn, as for
    :func:`~metaunlearn.evaluation.evaluate`. Returns the summary. ``processes`` that
    :func:`~metaunlearn.processes.join` connected share the pictures, each making this same call.
    """
    named = read_prompts(prompts) if isinstance(prompts, Path) else [Prompt(text) for text in prompts]
    if not named:
        raise UserError("expected at least one prompt (--prompt TEXT or --prompts FILE), got none.")
    check_asked(images=images, steps=steps, guidance_scale=guidance_scale)
    settings = resolve(DrawSettings, {}, overrides)
    adapter = load(model, processes.device(device))
    pipeline = adapter.pipeline
    sampling, rows = sampling_of(pipeline, named, steps=steps, guidance_scale=guidance_scale)
    draws = draws_for(rows, images=images, seed=seed, guidance_scale=sampling.guidance_scale)
    request = {
        "command": "generate",
        "model": model,
        "weights": adapter.fingerprint(),
        "images": [[draw.text, draw.seed, draw.guidance_scale] for draw in draws],
        "steps": sampling.steps,
        "settings": settings.model_dump(),
    }
    folder = RunFolder.open(out, request, resume=resume, processes=processes)
    if folder.complete_before:
        return {"out": str(out), **folder.summary()}
    files = draw_into(
        out,
        pipeline,
        draws,
        finished=folder.state,
        steps=sampling.steps,
        settings=settings,
        progress=folder.watched(progress),
        processes=processes,
    )
    if processes.main:
        contact_sheet(files[:SHEET_PICTURES]).save(out / SHEET)
    with Image.open(files[0]) as first:
        size = [first.height, first.width]
    folder.finish(images=len(files), image_size=size, sheet=SHEET)
    return {"out": str(out), **folder.summary()}


def evaluate_into(
    model: str,
    prompts: Path,
    out: Path,
    *,
    metrics: Sequence[str],
    judge: str | None = None,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | None = None,
    images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Score ``model`` on the prompts of a file; ``out`` gets ``results.json``, the pictures and ``run.json``.

    Without ``judge`` Canvas and what descends from it is seen by Canvas's own; another model has none.

    Returns ``results.json``'s content under ``"results"``. ``steps``, ``guidance_scale`` and ``overrides`` are those of
    :func:`~metaunlearn.evaluation.evaluate`. ``processes`` share the pictures as for :func:`generate_into`.
    """
    from metaunlearn.evaluation import plan
    from metaunlearn.metrics.default_judge import judge_for
    from metaunlearn.metrics.measures import measured_by, refuse_unread
    from metaunlearn.metrics.unlearncanvas import looked_for

    refuse_unread(metrics, judge=judge, concept=concept, alternatives=alternatives, reference=reference)
    rows = read_prompts(prompts)
    device = processes.device(device)
    adapter = load(model, device)
    evaluation = plan(
        adapter.pipeline,
        rows,
        metrics=metrics,
        judge=judge_for(adapter.pipeline, judge, labels=looked_for(concept, alternatives), device=device),
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        images_per_prompt=images,
        steps=steps,
        guidance_scale=guidance_scale,
        overrides=overrides,
        device=device,
    )
    request = {
        "command": "evaluate",
        "model": model,
        "weights": adapter.fingerprint(),
        "prompts": sha256(prompts),
        "metrics": list(metrics),
        "judge": judge,
        "concept": concept,
        "alternatives": list(alternatives),
        "reference": None if reference is None else str(reference),
        **measured_by(evaluation.metrics, evaluation.request),
        "images": images,
        "steps": evaluation.steps,
        "guidance_scale": guidance_scale,
        "settings": evaluation.settings.model_dump(),
        "seed": seed,
    }
    folder = RunFolder.open(out, request, resume=resume, processes=processes)
    if not folder.complete_before:
        scores = evaluation.run(
            adapter.pipeline, out=out, kept=folder.state, progress=folder.watched(progress), processes=processes
        )
        folder.finish(metrics=list(scores))
    return {"out": str(out), "results": json.loads((out / RESULTS_FILE).read_text())}


def contact_sheet(files: Sequence[Path], *, side: int | None = None) -> Image.Image:
    """The pictures in ``files``, all of one size, in reading order on a nearly square white sheet.

    ``side`` scales each down to at most that many pixels a side.
    """
    pictures = []
    for file in files:
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
            if side is not None:
                pictures[-1].thumbnail((side, side))
    width, height = pictures[0].size
    columns = math.ceil(math.sqrt(len(pictures)))
    lines = math.ceil(len(pictures) / columns)
    size = (columns * (width + SHEET_GAP) - SHEET_GAP, lines * (height + SHEET_GAP) - SHEET_GAP)
    sheet = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + SHEET_GAP), index // columns * (height + SHEET_GAP)))
    return sheet
