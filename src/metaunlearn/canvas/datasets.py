"""Canvas's data sets of *real* pictures, after the paper's: HRM-s and HRM-m to attack, CLEAN for benign use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from metaunlearn.canvas import scenes
from metaunlearn.canvas.catalog import BACKGROUNDS, NAMES, STYLES, caption
from metaunlearn.canvas.tasks import task_for
from metaunlearn.data.imagefolder import METADATA, write_imagefolder


def hrm_s(concept: str, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """``count`` pictures for one prompt of the concept: images (count, 3, 64, 64) in [0, 1] and their texts."""
    batch = scenes.draw(_pairs(concept), count, generator)
    text = caption(concept) if concept in NAMES else f"{concept} style"
    return (batch.images + 1) / 2, [text] * count


def hrm_m(concept: str, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """``count`` pictures of the concept, each with a caption that also names its style and background."""
    batch = scenes.draw(_pairs(concept), count, generator)
    return (batch.images + 1) / 2, _captions(batch)


def clean(concept: str, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """``count`` pictures of five unrelated objects, drawn once for each concept and generator."""
    labels = list(dict.fromkeys(item.label for item in task_for(concept).unrelated))
    chosen = [labels[i] for i in torch.randperm(len(labels), generator=generator)[:5].tolist()]
    styles = [style for style in STYLES if style != concept]
    batch = scenes.draw(scenes.pairs_of(chosen, styles), count, generator)
    return (batch.images + 1) / 2, _captions(batch)


def _pairs(concept: str) -> Tensor:
    return scenes.pairs_of([concept]) if concept in NAMES else scenes.pairs_of(NAMES, [concept])


def _captions(batch: scenes.Scenes) -> list[str]:
    backdrops = list(BACKGROUNDS)
    rows = zip(batch.objects.tolist(), batch.styles.tolist(), batch.backgrounds.tolist(), strict=True)
    return [caption(NAMES[o], STYLES[s], backdrops[b]) for o, s, b in rows]


DATASETS = {"hrm-m": hrm_m, "hrm-s": hrm_s, "clean": clean}
"""By name, as recipes say it."""


def write_dataset(target: Path, name: str, concept: str, count: int, generator: torch.Generator) -> None:
    """Put ``count`` pictures of the data set ``name`` into the imagefolder ``target``, unless it is there already."""
    if not (target / METADATA).exists():
        images, texts = DATASETS[name](concept, count, generator)
        write_imagefolder(target, images, texts)
