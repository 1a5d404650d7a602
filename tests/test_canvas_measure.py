"""A state of a model measured on a Canvas task: what is drawn and compared with, and what a summary holds of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaunlearn.canvas import measure as measuring
from metaunlearn.canvas.datasets import hrm_s
from metaunlearn.canvas.measure import Measurement, concept_seen, measure, reference_pictures
from metaunlearn.canvas.tasks import task_for
from metaunlearn.config import Counts
from metaunlearn.data.imagefolder import ImageText
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import load_judge


@pytest.mark.parametrize(("unrelated", "has_fid"), [(3, False), (4, True)])
def test_each_role_has_seeds_of_its_own_and_few_pictures_no_fid(
    monkeypatch: pytest.MonkeyPatch, unrelated: int, has_fid: bool
) -> None:
    """Four pictures are enough here, where the judge's features have more dimensions."""
    asked: list[int] = []

    def generate(pipeline: Any, prompts: list[str], seeds: list[int], **_: Any) -> torch.Tensor:
        asked.extend(seeds)
        return torch.rand(len(seeds), 3, 64, 64, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(measuring, "generate_images", generate)
    monkeypatch.setattr(measuring, "counts_for_fid", lambda judge: 4)
    monkeypatch.setattr(measuring, "REFERENCE_PICTURES", 8)
    counts = Counts(concept=2, related=1, unrelated=unrelated)
    found = measure(None, task_for("knife"), load_judge("canvas"), counts, seed=3)
    first = [role * 10_000_019 + 300_009 for role in (1, 2, 3)]
    assert asked == [first[0], first[0] + 1, first[1], *(first[2] + i for i in range(unrelated))]
    assert (found.fid is not None) == has_fid


def test_pictures_that_are_given_lie_between_0_and_1() -> None:
    """As generated ones do; an imagefolder's lie between -1 and 1."""
    images, texts = hrm_s("knife", 6, torch.Generator().manual_seed(0))
    score, shown = concept_seen(ImageText(images * 2 - 1, texts, []), task_for("knife"), load_judge("canvas"))
    assert score.value == 100
    torch.testing.assert_close(shown.images, images)


def test_pictures_that_fid_compares_with_lie_between_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of their grounds are light."""
    monkeypatch.setattr(measuring, "REFERENCE_PICTURES", 8)
    real = reference_pictures(task_for("knife"))
    assert len(real) == 8
    assert 0 <= real.min() < real.max() <= 1
    assert real.mean() > 0.7


def test_a_summary_has_the_ends_of_each_interval_in_order() -> None:
    score = Score(value=2.0, low=1.0, high=3.0, n=4, protocol={})
    found = Measurement(concept=score, related=None, unrelated=None, clip_score=score, fid=score, shown=[]).summary()
    assert found["concept"] == [2.0, 1.0, 3.0]
    assert found["intervals"] == {"clip_score": [1.0, 3.0], "fid": [1.0, 3.0]}
