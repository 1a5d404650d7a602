"""CLIP score: how well do images fit their prompts? Higher is better.

N images, (N, 3, H, W) in [0, 1]; D features. The literature scales, clamps and words it differently, so the rule is
part of the name and of the protocol; the CLIP of a published figure is named beside it and is the judge's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.intervals import Score, bootstrap_mean, require_data, score
from metaunlearn.metrics.judge import Judge

DEFAULT_RULE = "clamped"


@dataclass(frozen=True, kw_only=True)
class ClipRule:
    """The mean over images of ``scale`` times the cosine between an image and ``prefix`` with its prompt."""

    name: str
    scale: float
    clamped: bool
    """Whether a negative cosine counts as 0."""
    prefix: str = ""
    source: str
    """Whose rule it is, and with which CLIP."""

    @property
    def wording(self) -> str:
        """The rule in a protocol."""
        cosine = "max(cos, 0)" if self.clamped else "cos"
        prompt = f"the prompt after {self.prefix!r}" if self.prefix else "the prompt as it is"
        return f"mean of {'' if self.scale == 1 else f'{self.scale:g} '}{cosine}, {prompt}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which numbers a score lies."""
        return (0.0 if self.clamped else -self.scale, self.scale)


RULES = {
    rule.name: rule
    for rule in (
        ClipRule(name=DEFAULT_RULE, scale=100, clamped=True, source="torchmetrics"),
        ClipRule(name="logits", scale=100, clamped=False, source="MACE and RECE, with CLIP ViT-B/32"),
        ClipRule(name="cosine", scale=1, clamped=False, source="AdvUnlearn, with CLIP ViT-B/32"),
        ClipRule(
            name="clipscore", scale=2.5, clamped=True, prefix="A photo depicts ",
            source="J. Hessel et al., EMNLP 2021, with CLIP ViT-B/32",
        ),
        ClipRule(name="sdd", scale=1, clamped=False, prefix="A photo depicts ", source="SDD, with CLIP ViT-L/14"),
    )
}  # fmt: skip


def clip_rule_named(name: str) -> ClipRule:
    """The rule of that name; UserError lists them."""
    if name not in RULES:
        raise UserError(
            f"There is no rule {name!r} for the CLIP score (--metrics clip-score:RULE).{did_you_mean(name, RULES)} "
            f"There are: {', '.join(RULES)}."
        )
    return RULES[name]


def clip_score(
    judge: Judge, images: Tensor, texts: Sequence[str], *, rule: ClipRule = RULES[DEFAULT_RULE], seed: int = 0
) -> Score:
    """The CLIP score of N images with their N texts by ``rule``; by default the mean of 100 max(cos(E_I, E_T), 0).

    ``seed`` is that of the bootstrap only.
    """
    require_data(len(images), "the CLIP score")
    if len(texts) != len(images):
        raise UserError(f"Expected one text for each image, got {len(images)} images and {len(texts)} texts.")
    scores = pair_scores(judge.embed_images(images), text_features(judge, texts, rule), rule)
    return mean_clip_score(scores, judge, rule, seed=seed)


def text_features(judge: Judge, texts: Sequence[str], rule: ClipRule) -> Tensor:
    """The features of N texts, (N, D), as ``rule`` words them; each distinct text is embedded once."""
    known = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    embedded = judge.embed_texts([rule.prefix + text for text in known])
    return embedded[torch.tensor([known[text] for text in texts])]


def mean_clip_score(scores: Tensor, judge: Judge, rule: ClipRule, *, seed: int = 0) -> Score:
    """The CLIP score of N images whose :func:`pair_scores` by ``rule`` are ``scores``, (N,)."""
    return score(
        bootstrap_mean(scores, torch.Generator().manual_seed(seed), bounds=rule.bounds),
        protocol={
            "metric": "clip-score",
            "unit": "cosine" if rule.scale == 1 else f"{rule.scale:g} x cosine",
            "judge": judge.name,
            "judge_weights": judge.fingerprint,
            "rule": rule.wording,
            "interval": "bootstrap over images",
        },
        raw=[{"score": value} for value in scores.tolist()],
    )


def pair_scores(image_features: Tensor, text_features: Tensor, rule: ClipRule) -> Tensor:
    """What ``rule`` makes of the cosine of each image (N, D) with its own text (N, D); (N,) float64."""
    cos = F.cosine_similarity(image_features.double(), text_features.double(), dim=1)
    return rule.scale * (cos.clamp(min=0) if rule.clamped else cos)
