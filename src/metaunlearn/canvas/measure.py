"""One state of a model, measured on a Canvas task: how much of the concept it shows, and what it kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.canvas import scenes
from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.canvas.tasks import CanvasTask, LabelledPrompt
from metaunlearn.config import Counts
from metaunlearn.data.imagefolder import ImageText
from metaunlearn.generation import generate_images
from metaunlearn.metrics.clip_score import clip_score
from metaunlearn.metrics.concept import concept_score, label_accuracy
from metaunlearn.metrics.fid import fid_score
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.pipelines import save_image
from metaunlearn.runs import Count

REFERENCE_PICTURES = 1000
"""Real pictures that FID compares with."""
SCORES = ("concept", "related", "unrelated", "clip_score", "fid")
"""What is measured of a state."""


@dataclass(frozen=True)
class Shown:
    """Generated pictures of one role, kept for the report's grids."""

    role: str
    prompts: list[str]
    seeds: list[int]
    images: Tensor
    """(N, 3, 64, 64) in [0, 1]."""


@dataclass(frozen=True)
class Measurement:
    """The scores of one state; those that were not asked for are None."""

    concept: Score
    related: Score | None
    unrelated: Score | None
    clip_score: Score | None
    fid: Score | None
    shown: list[Shown]

    def scores(self) -> dict[str, Score]:
        """Those that were asked for, by name."""
        found = {name: getattr(self, name) for name in SCORES}
        return {name: score for name, score in found.items() if score is not None}

    def protocols(self) -> dict[str, Any]:
        """By score, how it was taken."""
        return {name: {"n": score.n, **score.protocol} for name, score in self.scores().items()}

    def summary(self) -> dict[str, Any]:
        """The object S of ``summary.json``: scores in percent with their 95 % interval."""

        def triple(score: Score | None) -> list[float] | None:
            return None if score is None else [round(x, 2) for x in (score.value, score.low, score.high)]

        return {
            "concept": triple(self.concept),
            "related": triple(self.related),
            "unrelated": triple(self.unrelated),
            "clip_score": None if self.clip_score is None else round(self.clip_score.value, 3),
            "fid": None if self.fid is None else round(self.fid.value, 3),
            "intervals": {
                name: [round(score.low, 3), round(score.high, 3)]
                for name, score in (("clip_score", self.clip_score), ("fid", self.fid))
                if score is not None
            },
            "images": {shown.role: len(shown.seeds) for shown in self.shown},
        }


def measure(
    pipeline: Any,
    task: CanvasTask,
    judge: Judge,
    counts: Counts,
    *,
    seed: int,
    progress: Count | None = None,
) -> Measurement:
    """Generate the pictures that ``counts`` asks for, the same prompts and seeds whatever the model, and score them."""
    concept_items = [LabelledPrompt(prompt, task.concept) for prompt in task.concept_prompts]
    roles = {
        "concept": _take(concept_items, counts.concept),
        "related": _take(task.related, counts.related),
        "unrelated": _take(task.unrelated, counts.unrelated),
    }
    rows = [(role, item.prompt, _seed(role, seed, i)) for role, items in roles.items() for i, item in enumerate(items)]
    images = generate_images(pipeline, [row[1] for row in rows], [row[2] for row in rows], progress=progress)
    shown = {}
    for role in roles:
        at = [i for i, row in enumerate(rows) if row[0] == role]
        shown[role] = Shown(role, [rows[i][1] for i in at], [rows[i][2] for i in at], images[at])

    def accuracy(role: str, choices: Sequence[str]) -> Score | None:
        labels = [item.label for item in roles[role]]
        return label_accuracy(judge, shown[role].images, labels, choices) if labels else None

    alternatives = [name for name in task.choices if name != task.concept]
    kept = shown["unrelated"]
    return Measurement(
        concept=concept_score(judge, shown["concept"].images, task.concept, alternatives),
        related=accuracy("related", task.related_choices),
        unrelated=accuracy("unrelated", NAMES),
        clip_score=clip_score(judge, kept.images, kept.prompts) if kept.prompts else None,
        fid=fid_score(judge, kept.images, reference_pictures(task))
        if len(kept.prompts) >= counts_for_fid(judge)
        else None,
        shown=[part for part in shown.values() if part.prompts],
    )


def concept_seen(pictures: ImageText, task: CanvasTask, judge: Judge) -> tuple[Score, Shown]:
    """The task's concept in given ``pictures``; their place in the folder stands where a generated one's seed does."""
    images = (pictures.images + 1) / 2
    alternatives = [name for name in task.choices if name != task.concept]
    shown = Shown("concept", pictures.texts, [*range(len(images))], images)
    return concept_score(judge, images, task.concept, alternatives), shown


def save_shown(folder: Path, parts: Sequence[Shown], count: int) -> list[dict[str, Any]]:
    """The first ``count`` pictures of each role as PNGs in ``folder``; returns one record for each of them."""
    records = []
    for part in parts:
        for prompt, seed, image in list(zip(part.prompts, part.seeds, part.images, strict=True))[:count]:
            name = f"{part.role}-{seed}.png"
            save_image(folder / name, image)
            records.append({"role": part.role, "prompt": prompt, "seed": seed, "file": name})
    return records


def counts_for_fid(judge: Judge) -> int:
    """FID is left out below this many pictures: fewer than the features have dimensions make it meaningless."""
    return int(judge.embed_images(torch.zeros(1, 3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)).shape[1])


def reference_pictures(task: CanvasTask) -> Tensor:
    """Real pictures of the unrelated objects, (N, 3, 64, 64) in [0, 1], always the same ones."""
    labels = list(dict.fromkeys(item.label for item in task.unrelated))
    styles = [style for style in STYLES if style != task.concept]
    generator = torch.Generator().manual_seed(20)
    return (scenes.draw(scenes.pairs_of(labels, styles), REFERENCE_PICTURES, generator).images + 1) / 2


def _take(items: Sequence[LabelledPrompt], count: int) -> list[LabelledPrompt]:
    return [items[i % len(items)] for i in range(count)]


def _seed(role: str, seed: int, index: int) -> int:
    return {"concept": 1, "related": 2, "unrelated": 3}[role] * 10_000_019 + seed * 100_003 + index
