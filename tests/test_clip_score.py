"""The CLIP score: its rules, and CLIPModel's own logits."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from colours import ColourJudge, coloured
from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.errors import UserError
from metaunlearn.metrics.clip_score import RULES, clip_score
from metaunlearn.metrics.intervals import require_same_protocol
from metaunlearn.metrics.judge import ClipJudge
from metaunlearn.metrics.preprocessing import Preprocessing
from tiny_judges import new_clip


def test_clip_score_clamps_each_image() -> None:
    """cos(red, "red") = 1, cos(red, "green") = 0, cos(red, "red and blue") = 1/√2; a negative cosine counts as 0."""
    score = clip_score(ColourJudge(), coloured("red", "red", "red"), ["red", "green", "red and blue"])
    assert score.value == pytest.approx((100 + 0 + 100 / math.sqrt(2)) / 3)
    assert [row["score"] for row in score.raw] == pytest.approx([100, 0, 100 / math.sqrt(2)], abs=1e-5)
    assert score.low < score.value < score.high
    negative = ColourJudge()
    negative.embed_texts = lambda texts: torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]])
    assert clip_score(negative, coloured("red", "red"), ["a", "b"]).value == 50


@pytest.mark.parametrize(
    ("rule", "opposite", "orthogonal", "same", "text"),
    [
        ("clamped", 0, 0, 100, "a cat"),
        ("logits", -100, 0, 100, "a cat"),
        ("cosine", -1, 0, 1, "a cat"),
        ("clipscore", 0, 0, 2.5, "A photo depicts a cat"),
        ("sdd", -1, 0, 1, "A photo depicts a cat"),
    ],
)
def test_each_rule_of_the_clip_score(rule: str, opposite: float, orthogonal: float, same: float, text: str) -> None:
    """Three red pictures whose texts have the features -red, green and red."""
    judge, asked = ColourJudge(), []

    def embed(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([[-1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0]])

    judge.embed_texts = embed
    score = clip_score(judge, coloured("red", "red", "red"), ["a cat", "a dog", "an axe"], rule=RULES[rule])
    assert [row["score"] for row in score.raw] == pytest.approx([opposite, orthogonal, same])
    assert score.value == pytest.approx((opposite + orthogonal + same) / 3)
    assert asked[0] == text
    assert ("A photo depicts" in score.protocol["rule"]) == text.startswith("A")


def test_no_two_rules_share_a_protocol() -> None:
    scores = [clip_score(ColourJudge(), coloured("red", "red"), ["red", "red"], rule=rule) for rule in RULES.values()]
    for one, other in combinations(scores, 2):
        with pytest.raises(UserError, match="rule"):
            require_same_protocol([one, other])


def test_clip_score_agrees_with_the_model_s_own_logits() -> None:
    """logits_per_image / exp(logit_scale) is the cosine that CLIP itself computes."""
    tokenizer = build_tokenizer()
    clip = new_clip(tokenizer)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a rocket in noto style", "a knife", "a rocket in noto style"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip(**tokens, pixel_values=images).logits_per_image / clip.logit_scale.exp()
    judge = ClipJudge(clip, tokenizer, Preprocessing(resize=None), name="tiny")
    score = clip_score(judge, images, texts)
    expected = 100 * logits.diagonal().clamp(min=0)
    assert [row["score"] for row in score.raw] == pytest.approx(expected.tolist(), abs=1e-4)
    assert score.value == pytest.approx(float(expected.mean()), abs=1e-4)


def test_a_text_of_several_images_is_that_of_each() -> None:
    """Texts that repeat in no order: each image is red, and what counts is its own."""
    texts = ["green", "red", "red", "green", "green", "red"]
    score = clip_score(ColourJudge(), coloured(*["red"] * 6), texts)
    assert [row["score"] for row in score.raw] == pytest.approx([0, 100, 100, 0, 0, 100])


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [("clamped", 0, 100), ("logits", -100, 100), ("cosine", -1, 1), ("clipscore", 0, 2.5), ("sdd", -1, 1)],
)
def test_of_one_image_the_interval_is_all_that_the_rule_allows(rule: str, low: float, high: float) -> None:
    score = clip_score(ColourJudge(), coloured("red"), ["red"], rule=RULES[rule])
    assert (score.low, score.high) == (low, high)
