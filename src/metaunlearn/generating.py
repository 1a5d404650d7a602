"""From names to a result folder: what ``generate`` of the command line does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from metaunlearn.contact_sheet import SHEET_PICTURES, contact_sheet
from metaunlearn.data.imagefolder import SHEET
from metaunlearn.data.prompts import PromptsGiven, prompts_of
from metaunlearn.draws import AS_IT_IS, Draw, DrawSettings, check_asked, draw_into, draws_for, sampling_of
from metaunlearn.errors import UserError
from metaunlearn.models import load
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count, RunFolder
from metaunlearn.settings import resolve


def generate_into(
    model: str,
    prompts: PromptsGiven,
    out: Path,
    *,
    images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Overrides = (),
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
    named = prompts_of(prompts)
    if not named:
        raise UserError("expected at least one prompt (--prompt TEXT or --prompts FILE), got none.")
    check_asked(images=images, steps=steps, guidance_scale=guidance_scale)
    settings = resolve(DrawSettings, {}, as_overrides(overrides))
    adapter = load(model, processes.device(device))
    pipeline = adapter.pipeline
    sampling, rows = sampling_of(pipeline, named, steps=steps, guidance_scale=guidance_scale)
    draws = draws_for(rows, images=images, seed=seed, guidance_scale=sampling.guidance_scale)
    request = drawing(model, adapter, draws, steps=sampling.steps, settings=settings)
    folder = RunFolder.open(out, request, resume=resume, processes=processes, alone=True)
    if folder.complete_before:
        return {"out": str(out), **folder.summary()}
    with folder.alone():
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


def drawing(
    model: str, adapter: TextToImageModel, draws: Sequence[Draw], *, steps: int, settings: DrawSettings = AS_IT_IS
) -> dict[str, Any]:
    """What is asked of a run that draws: with it, ``run.json`` tells how each picture of the folder was drawn."""
    return {
        "command": "generate",
        "model": model,
        "weights": adapter.fingerprint(),
        "images": [[draw.text, draw.seed, draw.guidance_scale] for draw in draws],
        "steps": steps,
        "settings": settings.model_dump(),
    }
