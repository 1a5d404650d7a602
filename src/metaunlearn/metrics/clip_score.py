"""CLIP score: how well do images fit their prompts? From 0 to 100; higher is better.

N images, (N, 3, H, W) in [0, 1]; D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.errors import UserError
from metaunlearn.metrics.intervals import Score, bootstrap_mean, require_data, score
from metaunlearn.metrics.judge import Judge


def clip_score(judge: Judge, images: Tensor, texts: Sequence[str], *, seed: int = 0) -> Score:
    """The mean over images of 100 max(cos(E_I, E_T), 0) (J. Hessel et al., EMNLP 2021, without their factor of 2.5).

    ``seed`` is that of the bootstrap only.
    """
    require_data(len(images), "the CLIP score")
    if len(texts) != len(images):
        raise UserError(f"Expected one text for each image, got {len(images)} images and {len(texts)} texts.")
    return mean_clip_score(pair_scores(judge.embed_images(images), text_features(judge, texts)), judge, seed=seed)


def text_features(judge: Judge, texts: Sequence[str]) -> Tensor:
    """The features of N texts, (N, D); each distinct text is embedded once."""
    known = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return judge.embed_texts(list(known))[torch.tensor([known[text] for text in texts])]


def mean_clip_score(scores: Tensor, judge: Judge, *, seed: int = 0) -> Score:
    """The CLIP score of N images whose :func:`pair_scores` are ``scores``, (N,)."""
    return score(
        bootstrap_mean(scores, torch.Generator().manual_seed(seed), bounds=(0.0, 100.0)),
        protocol={
            "metric": "clip-score",
            "unit": "100 x cosine",
            "judge": judge.name,
            "judge_weights": judge.fingerprint,
            "rule": "mean of 100 max(cos, 0), the prompt as it is",
            "interval": "bootstrap over images",
        },
        raw=[{"score": value} for value in scores.tolist()],
    )


def pair_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """100 max(cos, 0) of each image (N, D) with its own text (N, D); (N,) float64."""
    cos = F.cosine_similarity(image_features.double(), text_features.double(), dim=1)
    return 100 * cos.clamp(min=0)
