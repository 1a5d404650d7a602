"""Scores of one state of one model on given prompts; what ``measure`` does for tasks of Canvas."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.data.prompts import Prompt
from metaunlearn.data.wording import said_as
from metaunlearn.draws import Draw, batches, draw_batch, draws_for
from metaunlearn.evaluation import plan
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.judge import Judge, load_judge
from metaunlearn.metrics.scores_file import with_raw, write_scores
from metaunlearn.models.state import load_state
from metaunlearn.pipelines import save_image
from metaunlearn.runs import Progress


def make(
    folder: Path,
    *,
    base: str,
    sets: Sequence[Mapping[str, Any]],
    judge: str,
    concept: str,
    alternatives: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
    erase: Path | None = None,
    attack: Path | None = None,
    at: str = "",
    word: str = "",
) -> None:
    """``folder/scores.json``, by the names in each set's ``scores``; ``folder/samples`` has its first pictures.

    The state is what ``attack`` left in ``at``; prompts have ``word`` where the concept's name was, if there is one.
    """
    pipeline = load_state(base, erase, attack, at).to(device)
    loaded = load_judge(judge, device=device)
    scores: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for one in sets:
        prompts = [Prompt(**record | {"text": said_as(record["text"], concept, word)}) for record in one["prompts"]]
        if one["scores"]:
            scores |= _scores(
                folder, pipeline, loaded, one, prompts, concept, alternatives, seed, device=device, progress=progress
            )
        samples += _samples(folder / "samples", pipeline, one, prompts, seed)
    write_scores(folder, scores, samples)


def _scores(
    folder: Path,
    pipeline: Any,
    judge: Judge,
    one: Mapping[str, Any],
    prompts: Sequence[Prompt],
    concept: str,
    alternatives: Sequence[str],
    seed: int,
    *,
    device: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """What was measured on finished batches is kept until the set is done, so that a killed cell goes on."""
    evaluation = plan(
        pipeline,
        prompts,
        metrics=list(one["scores"].values()),
        judge=judge,
        concept=concept,
        alternatives=alternatives,
        reference=one["reference"] or None,
        seed=seed,
        images_per_prompt=one["images"],
        device=device,
    )
    kept = folder / "kept" / one["name"]
    found = evaluation.run(
        pipeline,
        kept=kept,
        progress=None if progress is None else lambda done, total: progress(f"drawing {one['name']}", done, total),
    )
    shutil.rmtree(kept.parent)
    return with_raw(dict(zip(one["scores"], found.values(), strict=True)))


def _samples(
    folder: Path, pipeline: Any, one: Mapping[str, Any], prompts: Sequence[Prompt], seed: int
) -> list[dict[str, Any]]:
    """The set's first pictures as PNGs, drawn again: an evaluation holds no pictures."""
    guidance = default_sampling(pipeline).guidance_scale
    draws = draws_for(prompts, images=one["images"], seed=seed, guidance_scale=guidance)[: one["shown"]]
    records: dict[int, dict[str, Any]] = {}
    for batch in batches(pipeline, draws):
        for index, image in zip(batch, draw_batch(pipeline, draws, batch), strict=True):
            name = f"{one['name']}-{index:04d}.png"
            save_image(folder / name, image)
            records[index] = _record(draws[index], one, name)
    return [records[index] for index in sorted(records)]


def _record(draw: Draw, one: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {
        "role": one["name"], "prompt": draw.text, "seed": draw.seed, "file": file, "sensitive": one["sensitive"]
    }  # fmt: skip
