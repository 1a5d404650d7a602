"""The pictures of one state of one model for a set of prompts: what is scored of it, and kept when the model goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import draw_into, draws_for, sampling_of
from metaunlearn.generating import drawing
from metaunlearn.models import adapt
from metaunlearn.models.state import load_state
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress, RunFolder, labelled, named


def make(
    folder: Path,
    *,
    base: str,
    name: str,
    prompts: Sequence[Mapping[str, Any]],
    images: int,
    first: int | None,
    seed: int,
    device: str,
    progress: Progress | None,
    erase: Path | None = None,
    attack: Path | None = None,
    at: str = "",
) -> None:
    """``folder`` as ``metaunlearn generate`` leaves it but for the sheet; of all draws the ``first``.

    ``name`` is that of the set. The state is what ``attack`` left in ``at``.
    """
    model = adapt(load_state(base, erase, attack, at), device)
    sampling, asked = sampling_of(
        model.pipeline, [Prompt(**record) for record in prompts], steps=None, guidance_scale=None
    )
    draws = draws_for(asked, images=images, seed=seed, guidance_scale=sampling.guidance_scale)[:first]
    # Not its path, which may be written in another way when a killed cell goes on: a run knows it by its weights.
    request = drawing(named(model.pipeline), model, draws, steps=sampling.steps)
    run = RunFolder.open(folder, request, resume=(folder / RUN_FILE).exists())
    if not run.complete_before:
        count = labelled(progress, f"drawing {name}")
        draw_into(folder, model.pipeline, draws, finished=run.state, steps=sampling.steps, progress=run.watched(count))
        run.finish(images=len(draws))
