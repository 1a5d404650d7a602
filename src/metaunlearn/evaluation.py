"""Evaluate a pipeline: generate images for prompts, and measure them.

N images = prompts x images per prompt, (N, 3, H, W) in [0, 1], rounded to 8 bits before anything is measured, so that
the saved PNGs give the same scores. They are made, measured, written and dropped batch by batch: memory does not grow
with N but for a few numbers an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaunlearn.data.imagefolder import picture_file, to_uint8, write_captions, write_pictures
from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import Draw, batches, draw_batch, draws_for
from metaunlearn.errors import UserError
from metaunlearn.files import write_atomic, write_json
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.kept import Gathering, Kept, read_kept, write_kept
from metaunlearn.metrics.measures import METRICS, Metric, Pictures, Reference, Request, metrics_named
from metaunlearn.processes import ALONE, Processes

__all__ = ["IMAGES", "METRICS", "RAW", "RESULTS", "Evaluation", "Request", "check_metrics", "evaluate", "plan"]

RESULTS, RAW, IMAGES = "results.json", "raw.jsonl", "images"

Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is to be drawn and measured, with everything that can be refused refused already."""

    metrics: Mapping[str, Metric]
    """By the key of their score."""
    prompts: Sequence[Prompt]
    steps: int
    request: Request

    def run(
        self,
        pipeline: Any,
        *,
        out: Path | None = None,
        kept: Path | None = None,
        progress: Progress | None = None,
        processes: Processes = ALONE,
    ) -> dict[str, Score]:
        """Draw the images and score them.

        ``out`` gets the images as they are made, then ``raw.jsonl`` and ``results.json``. ``kept`` is a folder that
        gets what was measured on each finished batch; batches that lie there are not drawn again, so that a run that
        was killed goes on. It must not be shared by other evaluations. Of several ``processes`` each draws and measures
        its share of the batches; the main one scores them, and all get the scores.
        """
        draws, planned = self.request.draws, batches(self.request.draws)
        mine = {number: planned[number] for number in processes.turns(len(planned))}
        whole, done, total = Gathering(len(draws)), 0, sum(map(len, mine.values()))
        for number, batch in mine.items():
            part = None if kept is None else read_kept(kept, number)
            if part is None:
                part = self._draw_and_measure(pipeline, batch, out)
                if kept is not None:
                    write_kept(kept, number, part)
            whole.add(part)
            done += len(batch)
            if progress is not None:
                progress(done, total)
        for part in processes.of_others(lambda: whole.part([index for batch in mine.values() for index in batch])):
            if part.indices:
                whole.add(part)
        return processes.on_main(lambda: self._score(whole, out))

    def _score(self, whole: Gathering, out: Path | None) -> dict[str, Score]:
        draws = self.request.draws
        facts = _facts(self.prompts, draws, self.steps, whole.size)
        scores = {}
        for name, metric in self.metrics.items():
            rows = [row for row in whole.rows.get(metric.key, []) if row is not None]
            scores[name] = metric.score(rows, whole.features, self.request).stamped(**facts)
        if out is not None:
            _write(out, whole, draws, scores)
        return scores

    def _draw_and_measure(self, pipeline: Any, batch: Sequence[int], out: Path | None) -> Kept:
        draws = self.request.draws
        images = to_uint8(draw_batch(pipeline, draws, batch, steps=self.steps)).float() / 255
        if out is not None:
            write_pictures(out / IMAGES, images, batch)
        pictures = Pictures(images=images, draws=[draws[index] for index in batch], request=self.request)
        by_key = {metric.key: metric for metric in self.metrics.values() if not metric.wants_features}
        wanted = any(metric.wants_features for metric in self.metrics.values())
        return Kept(
            indices=list(batch),
            size=(images.shape[2], images.shape[3]),
            rows={key: list(metric.measure(pictures)) for key, metric in by_key.items()},
            features=pictures.features if wanted else None,
        )


def plan(
    pipeline: Any,
    prompts: Sequence[Prompt],
    *,
    metrics: Sequence[str],
    judge: Judge,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    images_per_prompt: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Check the call; the arguments are those of :func:`evaluate`, and ``device`` is where a metric's
    own model runs. UserError says what is wrong with them."""
    named = metrics_named(metrics)
    _check_call(prompts, images_per_prompt, steps, guidance_scale)
    defaults = default_sampling(pipeline)
    if guidance_scale is not None:
        prompts = [replace(prompt, guidance_scale=None) for prompt in prompts]
    compared = reference if any(metric.wants_features for metric in named.values()) else None
    request = Request(
        judge=judge,
        draws=draws_for(
            prompts,
            images=images_per_prompt,
            seed=seed,
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
        ),
        concept=concept,
        alternatives=alternatives,
        reference=None if compared is None else Reference.open(compared, size=_picture_size(pipeline)),
        seed=seed,
        device=device,
    )
    for metric in named.values():
        metric.check(request)
    return Evaluation(metrics=named, prompts=prompts, steps=defaults.steps if steps is None else steps, request=request)


def evaluate(
    pipeline: Any,
    prompts: Sequence[Prompt],
    *,
    metrics: Sequence[str],
    judge: Judge,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    images_per_prompt: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    out: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Score]:
    """Scores by metric name; with ``out``, also ``images/``, ``raw.jsonl`` and, last, ``results.json`` there.

    ``metrics`` are names of ``METRICS``, some with a variant: ``nudity:rece-9@0.6``, ``unsafe:DIR``, ``nsfw:FILE``.
    Image j of prompt i has the prompt's own seed + j, or ``seed`` + i * ``images_per_prompt`` + j. A given
    ``guidance_scale`` goes before a prompt's own, which goes before the pipeline's. Everything that can be refused is
    refused before the first image is made.
    """
    if out is not None and (Path(out) / RESULTS).exists():
        raise UserError(f"{out} (--out) already holds {RESULTS}; choose another folder.")
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
    )
    return evaluation.run(pipeline, out=None if out is None else Path(out), progress=progress)


def check_metrics(metrics: Sequence[str]) -> None:
    """UserError unless all are metrics as :func:`evaluate` takes them, at least one."""
    metrics_named(metrics)


def _check_call(
    prompts: Sequence[Prompt], images_per_prompt: int, steps: int | None, guidance_scale: float | None
) -> None:
    if not prompts:
        raise UserError("No score from no data: expected at least one prompt (prompts=, --prompts), got none.")
    for option, number in (("images_per_prompt=, --images", images_per_prompt), ("steps=, --steps", steps)):
        if number is not None and number < 1:
            raise UserError(f"Expected at least 1 ({option}), got {number}.")
    if guidance_scale is not None and guidance_scale < 0:
        raise UserError(f"Expected a guidance scale of at least 0 (guidance_scale=), got {guidance_scale}.")


def _picture_size(pipeline: Any) -> int:
    """Pixels a side of the pipeline's pictures, which the reference is brought to."""
    latent = pipeline.unet.config.sample_size
    size: int = (latent if isinstance(latent, int) else min(latent)) * pipeline.vae_scale_factor
    return size


def _facts(prompts: Sequence[Prompt], draws: Sequence[Draw], steps: int, size: tuple[int, int]) -> dict[str, Any]:
    """The part of the protocol that all metrics share."""
    rows = [[prompt.text, prompt.label, *([prompt.role] if prompt.role else [])] for prompt in prompts]
    scales = sorted({draw.guidance_scale for draw in draws})
    return {
        "prompts": hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest(),
        "images_per_prompt": len(draws) // len(prompts),
        "seeds": ranges([draw.seed for draw in draws]),
        "guidance_scale": scales[0] if len(scales) == 1 else scales,
        "steps": steps,
        "image_size": list(size),
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


def _write(out: Path, whole: Gathering, draws: Sequence[Draw], scores: Mapping[str, Score]) -> None:
    files = [picture_file(out / IMAGES, index) for index in range(len(draws))]
    write_captions(out / IMAGES, files, [draw.text for draw in draws])
    lines = []
    for index, (file, draw) in enumerate(zip(files, draws, strict=True)):
        row: dict[str, Any] = {
            "file_name": file.relative_to(out).as_posix(),
            "prompt": draw.text,
            "seed": draw.seed,
            "guidance_scale": draw.guidance_scale,
        }
        row.update({key: rows[index] for key, rows in whole.rows.items() if rows[index] is not None})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(out / RAW, "".join(lines))
    write_json(out / RESULTS, {name: score.to_dict() for name, score in scores.items()})
