"""Score pictures that are there already, by the metrics and the files of :mod:`metaunlearn.evaluation`.

The pictures are a folder as ``generate``, ``evaluate`` (its ``images/``), ``data make`` and the attacks on pictures
leave it, or any folder of images where no metric asks for prompts. They are measured whole, in their own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.data.imagefolder import Entry, fingerprint, list_entries, read_whole, require_modes
from metaunlearn.data.prompts import PromptsGiven, prompts_of
from metaunlearn.data.wording import listed
from metaunlearn.devices import check_device
from metaunlearn.draws import Depicted
from metaunlearn.errors import UserError
from metaunlearn.evaluation import sampling_facts
from metaunlearn.files import needed_path, path_of, read_json
from metaunlearn.generation import BATCH
from metaunlearn.metrics.default_judge import judge_for
from metaunlearn.metrics.distance import Distance
from metaunlearn.metrics.fid import require_pairs
from metaunlearn.metrics.interface import Request
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.kept import Gathering
from metaunlearn.metrics.measuring import (
    gather,
    prompts_hash,
    refuse_measured,
    scores_of,
    write_evaluation,
)
from metaunlearn.metrics.reference import Reference
from metaunlearn.metrics.registry import AnyMetric, code_behind, measured_by, metrics_named, reads, refuse_unread
from metaunlearn.metrics.unlearncanvas import looked_for
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import RESULTS_FILE, Count, RunFolder
from metaunlearn.sampled import Sampled, sampled_in


@dataclass(frozen=True, kw_only=True)
class PictureEvaluation:
    """Which pictures are to be measured by what, with everything that can be refused refused already."""

    folder: Path
    files: Sequence[Path]
    metrics: Mapping[str, AnyMetric]
    """By the key of their score."""
    request: Request
    sampled: Sequence[Sampled] | None
    """One a picture, where the folder's records say how all were drawn."""
    asked: Sequence[Depicted] = ()
    """The prompts, if they were given and the pictures are in their order."""

    def run(
        self,
        *,
        out: Path | None = None,
        kept: Path | None = None,
        progress: Count | None = None,
        processes: Processes = ALONE,
    ) -> dict[str, Score]:
        """Score the pictures; ``out`` gets ``raw.jsonl`` and ``results.json``, the rest is as for an ``Evaluation``."""
        indices = range(len(self.files))
        planned = [indices[first : first + BATCH] for first in indices[::BATCH]]

        def read(batch: Sequence[int]) -> Tensor:
            return torch.stack([read_whole(self.files[index]) for index in batch]).float() / 255

        whole = gather(self.metrics, self.request, planned, read, kept=kept, progress=progress, processes=processes)
        return processes.on_main(lambda: self._score(whole, out))

    def _score(self, whole: Gathering, out: Path | None) -> dict[str, Score]:
        draws, sampled = self.request.draws, self.sampled
        scores = scores_of(self.metrics, self.request, whole, self._facts(whole.size))
        if out is not None:
            pictures = [
                {
                    "file_name": file.relative_to(self.folder).as_posix(),
                    "prompt": draw.text,
                    "seed": None if sampled is None else sampled[index].seed,
                    "guidance_scale": None if sampled is None else sampled[index].guidance_scale,
                }
                for index, (file, draw) in enumerate(zip(self.files, draws, strict=True))
            ]
            write_evaluation(out, pictures, whole, scores)
        return scores

    def _facts(self, size: tuple[int, int]) -> dict[str, Any]:
        """The part of the protocol that all metrics share: of pictures that were drawn here, as when drawing them."""
        facts: dict[str, Any] = {"image_size": list(size)}
        draws = self.request.draws
        if any(draw.text for draw in draws):
            asked = self.asked or _asked_by_captions(draws)
            facts |= {"prompts": prompts_hash(asked), "images_per_prompt": len(draws) // len(asked)}
        if self.sampled is None:
            return facts | {"sampling": "unknown"}
        seeds, scales = ([getattr(one, key) for one in self.sampled] for key in ("seed", "guidance_scale"))
        return facts | sampling_facts(seeds, scales, self.sampled[0].steps, self.sampled[0].precision)


def plan_pictures(
    pictures: Path | str,
    *,
    metrics: Sequence[str],
    judge: Judge | str | None = None,
    prompts: PromptsGiven = (),
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> PictureEvaluation:
    """Check the call; the arguments are those of :func:`evaluate_pictures`. Every picture is decoded once."""
    named, prompts = metrics_named(listed(metrics)), prompts_of(prompts)
    folder = needed_path(pictures, "pictures=, --pictures DIR")
    alternatives, device = listed(alternatives), check_device(device)
    texts_matter = bool(prompts) or any(reads(metric.key.partition(":")[0], "--prompts") for metric in named.values())
    entries = list_entries(folder, default_text=None if texts_matter else "")
    require_modes(entries, "the pictures (pictures=, --pictures)")
    height, width = _size(entries)
    distances = [metric for metric in named.values() if isinstance(metric, Distance)]
    for distance in distances:
        require_pairs(len(entries), f"the pictures in {folder} (pictures=, --pictures)", distance.name.upper())
    asked = [Depicted(text=prompt.text, label=prompt.label, role=prompt.role) for prompt in prompts]
    drawn = _as_drawn(entries, asked)
    request = Request(
        judge=judge_for(None, judge, labels=looked_for(concept, alternatives), device=device),
        draws=drawn or _depicted(entries, asked),
        concept=concept,
        alternatives=alternatives,
        reference=None if reference is None or not distances else Reference.open(reference, size=min(height, width)),
        seed=seed,
        device=device,
    )
    for metric in named.values():
        metric.check(request)
    files = [entry.file for entry in entries]
    return PictureEvaluation(
        folder=folder,
        files=files,
        metrics=named,
        request=request,
        sampled=sampled_in(folder, entries),
        asked=asked if drawn else (),
    )


def evaluate_pictures(
    pictures: Path | str,
    *,
    metrics: Sequence[str],
    judge: Judge | str | None = None,
    prompts: PromptsGiven = (),
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | str | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: Path | str | None = None,
    progress: Count | None = None,
) -> dict[str, Score]:
    """Scores of the folder ``pictures`` by metric name; with ``out``, also ``raw.jsonl`` and ``results.json`` there.

    ``prompts`` add labels and roles to the captions in ``metadata.jsonl``, and are needed by metrics that ask for those
    only. ``seed`` is that of the bootstraps. All else is as for :func:`~metaunlearn.evaluation.evaluate`.
    """
    refuse_measured(out)
    evaluation = plan_pictures(
        pictures,
        metrics=metrics,
        judge=judge,
        prompts=prompts,
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        device=device,
    )
    return evaluation.run(out=path_of(out), progress=progress)


def evaluate_pictures_into(
    pictures: Path,
    out: Path,
    *,
    metrics: Sequence[str],
    judge: str | None = None,
    prompts: Path | None = None,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """The command: ``out`` gets ``results.json``, ``raw.jsonl`` and ``run.json``; returns the results' content."""
    refuse_unread(metrics, judge=judge, concept=concept, alternatives=alternatives, reference=reference)
    device = processes.device(device)
    evaluation = plan_pictures(
        pictures,
        metrics=metrics,
        judge=judge,
        prompts=prompts or (),
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        device=device,
    )
    request = {
        "command": "evaluate --pictures",
        "pictures": str(pictures),
        "content": fingerprint(pictures),
        "prompts": prompts_hash(evaluation.request.draws),
        "metrics": list(metrics),
        "judge": judge,
        "concept": concept,
        "alternatives": list(alternatives),
        "reference": None if reference is None else str(reference),
        "packages": code_behind(metrics) or None,
        **measured_by(evaluation.metrics, evaluation.request),
        "seed": seed,
    }
    run = RunFolder.open(out, request, resume=resume, processes=processes, alone=True)
    if not run.complete_before:
        with run.alone():
            scores = evaluation.run(out=out, kept=run.state, progress=run.watched(progress), processes=processes)
            run.finish(metrics=list(scores))
    return {"out": str(out), "results": read_json(out / RESULTS_FILE)}


def _size(entries: Sequence[Entry]) -> tuple[int, int]:
    """Height and width, which all pictures must share: a metric would resize each differently."""
    first = entries[0].file
    size = read_whole(first).shape[1:]
    for entry in entries[1:]:
        other = read_whole(entry.file).shape[1:]
        if other != size:
            raise UserError(
                f"The pictures (pictures=, --pictures) have several sizes: {first.name} is {size[1]} x {size[0]} "
                f"pixels, {entry.file.name} {other[1]} x {other[0]}. Scores need one; bring all to the same size."
            )
    return size[0], size[1]


def _as_drawn(entries: Sequence[Entry], asked: Sequence[Depicted]) -> list[Depicted]:
    """What each picture should show if they are all of the prompts' in their order, else nothing.

    This also tells prompts of the same words apart.
    """
    repeated = [one for one in asked for _ in range(len(entries) // len(asked))]
    return repeated if [one.text for one in repeated] == [entry.text for entry in entries] else []


def _asked_by_captions(draws: Sequence[Depicted]) -> list[Depicted]:
    """Which prompts gave these pictures: equal ones in a row are one prompt's, if all have equally many."""
    runs = [list(run) for _, run in groupby(draws)]
    return [run[0] for run in runs] if len({len(run) for run in runs}) == 1 else list(draws)


def _depicted(entries: Sequence[Entry], asked: Sequence[Depicted]) -> list[Depicted]:
    """What each picture should show: its caption, with the label and role of the prompt that has these words."""
    if not asked:
        return [Depicted(text=entry.text) for entry in entries]
    by_text: dict[str, Depicted] = {}
    for one in asked:
        if by_text.setdefault(one.text, one) != one:
            raise UserError(
                f"The prompt {one.text!r} is in --prompts (prompts=) with several labels or roles, and the pictures "
                "(pictures=, --pictures) are not in the order of the prompts; give each prompt once."
            )
    for entry in entries:
        if entry.text not in by_text:
            raise UserError(
                f"The picture {entry.file.name} (pictures=, --pictures) has the caption {entry.text!r}, which is no "
                "prompt of --prompts (prompts=). Give the prompts that the pictures were drawn for."
            )
    return [by_text[entry.text] for entry in entries]
