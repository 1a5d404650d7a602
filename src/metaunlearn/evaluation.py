"""Evaluate a pipeline: generate images for prompts, and measure them.

N images = prompts x images per prompt, (N, 3, H, W) in [0, 1], rounded to 8 bits before anything is measured, so that
the saved PNGs give the same scores. They are made, measured, written and dropped batch by batch: memory does not grow
with N but for a few numbers an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import as_saved, picture_file, write_captions, write_pictures
from metaunlearn.data.prompts import Prompt, PromptsGiven, prompts_of
from metaunlearn.data.wording import listed
from metaunlearn.devices import check_device
from metaunlearn.draws import AS_IT_IS, Draw, DrawSettings, batches, check_asked, draw_batch, draws_for, sampling_of
from metaunlearn.errors import UserError
from metaunlearn.files import path_of
from metaunlearn.generation import picture_size
from metaunlearn.metrics.default_judge import judge_for
from metaunlearn.metrics.distance import Distance
from metaunlearn.metrics.interface import Request
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.kept import Gathering
from metaunlearn.metrics.measuring import (
    RAW,
    gather,
    prompts_hash,
    refuse_measured,
    scores_of,
    write_evaluation,
)
from metaunlearn.metrics.reference import Reference
from metaunlearn.metrics.registry import METRICS, AnyMetric, metrics_named
from metaunlearn.metrics.unlearncanvas import looked_for
from metaunlearn.models import device_for, load, load_pipeline
from metaunlearn.models.precision import Precision
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count
from metaunlearn.settings import resolve, whole_number

__all__ = ["IMAGES", "METRICS", "RAW", "Evaluation", "Request", "evaluate", "plan"]

IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is to be drawn and measured, with everything that can be refused refused already."""

    metrics: Mapping[str, AnyMetric]
    """By the key of their score."""
    prompts: Sequence[Prompt]
    draws: Sequence[Draw]
    """One an image."""
    steps: int
    request: Request
    settings: DrawSettings = AS_IT_IS

    def run(
        self,
        pipeline: Any,
        *,
        out: Path | None = None,
        kept: Path | None = None,
        progress: Count | None = None,
        processes: Processes = ALONE,
    ) -> dict[str, Score]:
        """Draw the images and score them.

        ``out`` gets the images as they are made, then ``raw.jsonl`` and ``results.json``. ``kept`` is a folder that
        gets what was measured on each finished batch; batches that lie there are not drawn again, so that a run that
        was killed goes on. It must not be shared by other evaluations. Of several ``processes`` each draws and measures
        its share of the batches; the main one scores them, and all get the scores.
        """
        draws, planned = self.draws, batches(pipeline, self.draws, self.settings)

        def draw(batch: Sequence[int]) -> Tensor:
            images = as_saved(draw_batch(pipeline, draws, batch, steps=self.steps, settings=self.settings))
            if out is not None:
                write_pictures(out / IMAGES, images, batch)
            return images

        whole = gather(self.metrics, self.request, planned, draw, kept=kept, progress=progress, processes=processes)
        return processes.on_main(lambda: self._score(whole, out))

    def _score(self, whole: Gathering, out: Path | None) -> dict[str, Score]:
        facts = _facts(self.prompts, self.draws, self.steps, whole.size, self.settings)
        scores = scores_of(self.metrics, self.request, whole, facts)
        if out is not None:
            files = [picture_file(out / IMAGES, index) for index in range(len(self.draws))]
            write_captions(out / IMAGES, files, [draw.text for draw in self.draws])
            pictures = [
                {
                    "file_name": file.relative_to(out).as_posix(),
                    "prompt": draw.text,
                    "seed": draw.seed,
                    "guidance_scale": draw.guidance_scale,
                }
                for file, draw in zip(files, self.draws, strict=True)
            ]
            write_evaluation(out, pictures, whole, scores)
        return scores


def plan(
    pipeline: Any,
    prompts: PromptsGiven,
    *,
    metrics: Sequence[str],
    judge: Judge | str | None = None,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    images_per_prompt: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Overrides = (),
    device: str | torch.device | None = None,
) -> Evaluation:
    """Check the call; the arguments are those of :func:`evaluate`. UserError says what is wrong with them."""
    alternatives = listed(alternatives)
    named, prompts = metrics_named(listed(metrics)), prompts_of(prompts)
    device = check_device(device_for(pipeline, device))
    seed = whole_number(seed, "seed=, --seed")
    images_per_prompt = whole_number(images_per_prompt, "images_per_prompt=, --images")
    steps = None if steps is None else whole_number(steps, "steps=, --steps")
    if not prompts:
        raise UserError("No score from no data: expected at least one prompt (prompts=, --prompts), got none.")
    check_asked(images=images_per_prompt, steps=steps, guidance_scale=guidance_scale)
    settings = resolve(DrawSettings, {}, as_overrides(overrides))
    sampling, prompts = sampling_of(pipeline, prompts, steps=steps, guidance_scale=guidance_scale)
    draws = draws_for(prompts, images=images_per_prompt, seed=seed, guidance_scale=sampling.guidance_scale)
    compared = reference if any(isinstance(metric, Distance) for metric in named.values()) else None
    request = Request(
        judge=judge_for(pipeline, judge, labels=looked_for(concept, alternatives), device=device),
        draws=draws,
        concept=concept,
        alternatives=alternatives,
        reference=None if compared is None else Reference.open(compared, size=min(picture_size(pipeline))),
        seed=seed,
        device=device,
    )
    for metric in named.values():
        metric.check(request)
    return Evaluation(
        metrics=named,
        prompts=prompts,
        draws=draws,
        steps=sampling.steps,
        request=request,
        settings=settings,
    )


def evaluate(
    pipeline: Any,
    prompts: PromptsGiven,
    *,
    metrics: Sequence[str],
    judge: Judge | str | None = None,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    images_per_prompt: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Overrides = (),
    device: str | torch.device | None = None,
    out: Path | str | None = None,
    progress: Count | None = None,
) -> dict[str, Score]:
    """Scores by metric name; with ``out``, also ``images/``, ``raw.jsonl`` and, last, ``results.json`` there.

    ``pipeline`` is one, or what :func:`~metaunlearn.models.load` takes. ``prompts`` are texts,
    :class:`~metaunlearn.data.prompts.Prompt` or a file (a ``Path``). ``metrics`` are names of ``METRICS``, some with a
    variant: ``nudity:rece-9@0.6``, ``unsafe:DIR``, ``fid:FILE``.
    Image j of prompt i has the prompt's own seed + j, or ``seed`` + i * ``images_per_prompt`` + j. A given
    ``guidance_scale`` goes before a prompt's own, which goes before the pipeline's. ``overrides`` are keys of
    :class:`~metaunlearn.draws.DrawSettings`, such as ``"precision=bf16"``. ``judge`` is one
    (:func:`~metaunlearn.metrics.judge.load_judge`) or its name; ``None``: Canvas's own, of what Canvas draws.
    ``device`` is where a metric's own model (Inception, the safety checker) runs, and what is given by name; ``None``:
    where ``pipeline`` is.
    Everything that can be refused is refused before the first image is made. What none of the metrics reads is passed
    over, so that one set of arguments serves several calls.
    """
    refuse_measured(out)
    device = device_for(pipeline, device)
    pipeline = load(pipeline, device).pipeline if isinstance(pipeline, str | Path) else load_pipeline(pipeline)
    evaluation = plan(
        pipeline,
        prompts,
        metrics=metrics,
        judge=judge,
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        images_per_prompt=images_per_prompt,
        steps=steps,
        guidance_scale=guidance_scale,
        overrides=overrides,
        device=device,
    )
    return evaluation.run(pipeline, out=path_of(out), progress=progress)


def _facts(
    prompts: Sequence[Prompt], draws: Sequence[Draw], steps: int, size: tuple[int, int], settings: DrawSettings
) -> dict[str, Any]:
    """The part of the protocol that all metrics share."""
    seeds, scales = [draw.seed for draw in draws], [draw.guidance_scale for draw in draws]
    return {
        "prompts": prompts_hash(prompts),
        "images_per_prompt": len(draws) // len(prompts),
        "image_size": list(size),
        **sampling_facts(seeds, scales, steps, settings.precision),
    }


def sampling_facts(
    seeds: Sequence[int], guidance_scales: Sequence[float], steps: int, precision: Precision
) -> dict[str, Any]:
    """How the images were drawn, as a protocol says it; where that says no precision, it is float32."""
    scales = sorted(set(guidance_scales))
    return {
        "seeds": ranges(seeds),
        "guidance_scale": scales[0] if len(scales) == 1 else scales,
        "steps": steps,
        **({} if precision == "float32" else {"precision": precision}),
    }


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in their order with runs joined: ``[3, 4, 5, 9]`` is ``"3-5 9"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(map(str, run)) for run in runs)
