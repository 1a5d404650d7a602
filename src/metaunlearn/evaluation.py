"""Evaluate a pipeline: generate images for prompts, and measure them.

N images = prompts x images per prompt, (N, 3, H, W) in [0, 1], rounded to 8 bits before anything is measured, so that
the saved PNGs give the same scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaunlearn.checkpoint import write_atomic, write_json
from metaunlearn.data.imagefolder import fingerprint, read_imagefolder, to_uint8, write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import Draw, draws_for, make_pictures
from metaunlearn.errors import RunError, UserError, did_you_mean
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.clip_score import clip_score
from metaunlearn.metrics.concept import concept_score, default_choices, label_accuracy
from metaunlearn.metrics.fid import fid_score, require_pairs
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge

RESULTS, RAW, IMAGES = "results.json", "raw.jsonl", "images"

Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a metric may need beside the images."""

    judge: Judge
    draws: Sequence[Draw]
    """One an image."""
    concept: str | None
    alternatives: Sequence[str]
    reference: Tensor | None
    """(R, 3, H, W) in [0, 1]."""
    seed: int
    """Of the bootstraps."""


class Metric(NamedTuple):
    """How a metric refuses what it cannot measure, before images are made, and how it measures them."""

    check: Callable[[Request], None]
    score: Callable[[Tensor, Request], Score]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is to be drawn and measured, with everything that can be refused refused already."""

    metrics: Sequence[str]
    prompts: Sequence[Prompt]
    steps: int
    request: Request
    reference_fingerprint: str | None

    def run(
        self,
        pipeline: Any,
        *,
        out: Path | None = None,
        kept: Path | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Score]:
        """Draw the images and score them; ``kept`` as in :func:`~metaunlearn.draws.make_pictures`."""
        draws = self.request.draws
        images = make_pictures(pipeline, draws, steps=self.steps, kept=kept, progress=progress)
        broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
        if broken:
            raise RunError(f"{broken} of {len(images)} generated images are not finite numbers: the model is damaged.")
        images = to_uint8(images).float() / 255
        facts = _facts(self.prompts, draws, self.steps, images)
        scores = {name: METRICS[name].score(images, self.request).stamped(**facts) for name in self.metrics}
        if "fid" in scores:
            scores["fid"] = scores["fid"].stamped(reference=self.reference_fingerprint)
        if out is not None:
            _write(out, images, draws, scores)
        return scores


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
) -> Evaluation:
    """Check the call; the arguments are those of :func:`evaluate`. UserError says what is wrong with them."""
    check_metrics(metrics)
    _check_call(prompts, images_per_prompt, steps, guidance_scale)
    defaults = default_sampling(pipeline)
    if guidance_scale is not None:
        prompts = [replace(prompt, guidance_scale=None) for prompt in prompts]
    compared = reference if "fid" in metrics else None
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
        reference=None if compared is None else _read_reference(compared, pipeline),
        seed=seed,
    )
    for name in metrics:
        METRICS[name].check(request)
    return Evaluation(
        metrics=metrics,
        prompts=prompts,
        steps=defaults.steps if steps is None else steps,
        request=request,
        reference_fingerprint=None if compared is None else fingerprint(compared),
    )


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
    """UserError unless all are names of ``METRICS``, at least one."""
    known = ", ".join(METRICS)
    if not metrics:
        raise UserError(f"No metric was named (metrics=, --metrics). There are: {known}.")
    for name in metrics:
        if name not in METRICS:
            raise UserError(
                f"There is no metric {name!r} (--metrics).{did_you_mean(name, METRICS)} There are: {known}."
            )


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


def _read_reference(reference: Path | str, pipeline: Any) -> Tensor:
    """The reference images at the pipeline's own size, (R, 3, size, size) in [0, 1]."""
    latent = pipeline.unet.config.sample_size
    size = (latent if isinstance(latent, int) else min(latent)) * pipeline.vae_scale_factor
    return ((read_imagefolder(reference, size=size, default_text="").images + 1) / 2).clamp(0, 1)


def _facts(prompts: Sequence[Prompt], draws: Sequence[Draw], steps: int, images: Tensor) -> dict[str, Any]:
    """The part of the protocol that all metrics share."""
    words = json.dumps([[prompt.text, prompt.label] for prompt in prompts], ensure_ascii=False)
    scales = sorted({draw.guidance_scale for draw in draws})
    return {
        "prompts": hashlib.sha256(words.encode()).hexdigest(),
        "images_per_prompt": len(draws) // len(prompts),
        "seeds": ranges([draw.seed for draw in draws]),
        "guidance_scale": scales[0] if len(scales) == 1 else scales,
        "steps": steps,
        "image_size": [images.shape[2], images.shape[3]],
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


def _write(out: Path, images: Tensor, draws: Sequence[Draw], scores: Mapping[str, Score]) -> None:
    files = write_imagefolder(out / IMAGES, images, [draw.text for draw in draws], overwrite=True)
    rows = []
    for index, (file, draw) in enumerate(zip(files, draws, strict=True)):
        row: dict[str, Any] = {
            "file_name": file.relative_to(out).as_posix(),
            "prompt": draw.text,
            "seed": draw.seed,
            "guidance_scale": draw.guidance_scale,
        }
        row.update({name: dict(score.raw[index]) for name, score in scores.items() if score.raw})
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(out / RAW, "".join(rows))
    write_json(out / RESULTS, {name: score.to_dict() for name, score in scores.items()})


def _probe() -> Tensor:
    """A blank image: judging it shows before the work whether a judge can do what a metric asks of it."""
    return torch.zeros(1, 3, 64, 64)


def _choices(request: Request) -> list[str]:
    """The concept, and what the judge may see instead."""
    if request.concept is None:
        raise UserError("The metric 'concept' needs the concept to look for: pass concept= (--concept TEXT).")
    if request.alternatives:
        return [request.concept, *request.alternatives]
    return default_choices(request.judge, [request.concept])


def _concept(images: Tensor, request: Request) -> Score:
    concept, *alternatives = _choices(request)
    return concept_score(request.judge, images, concept, alternatives)


def _check_concept(request: Request) -> None:
    _concept(_probe(), request)


def _labels(request: Request) -> tuple[list[str], list[str]]:
    """The label of every image, and the choices among which the judge is to find it."""
    labels = [draw.label for draw in request.draws if draw.label is not None]
    if len(labels) < len(request.draws):
        raise UserError("The metric 'accuracy' needs a label for every prompt: add a column 'label' to --prompts.")
    named = list(dict.fromkeys(labels))
    if request.alternatives:
        return labels, list(dict.fromkeys([*named, *request.alternatives]))
    return labels, default_choices(request.judge, named)


def _accuracy(images: Tensor, request: Request) -> Score:
    return label_accuracy(request.judge, images, *_labels(request))


def _check_accuracy(request: Request) -> None:
    labels, choices = _labels(request)
    label_accuracy(request.judge, _probe(), labels[:1], choices)


def _clip_score(images: Tensor, request: Request) -> Score:
    return clip_score(request.judge, images, [draw.text for draw in request.draws], seed=request.seed)


def _check_clip_score(request: Request) -> None:
    request.judge.embed_texts([request.draws[0].text])


def _reference(request: Request) -> Tensor:
    if request.reference is None:
        raise UserError("The metric 'fid' needs real images to compare with: pass reference= (--reference DIR).")
    return request.reference


def _fid(images: Tensor, request: Request) -> Score:
    return fid_score(request.judge, images, _reference(request), seed=request.seed)


def _check_fid(request: Request) -> None:
    require_pairs(len(_reference(request)), "the reference images (--reference)")
    require_pairs(len(request.draws), "the generated images (--images)")
    request.judge.embed_images(_probe())


METRICS: dict[str, Metric] = {
    "concept": Metric(check=_check_concept, score=_concept),
    "accuracy": Metric(check=_check_accuracy, score=_accuracy),
    "clip-score": Metric(check=_check_clip_score, score=_clip_score),
    "fid": Metric(check=_check_fid, score=_fid),
}
