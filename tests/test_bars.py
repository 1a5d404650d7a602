"""Bars for notebooks and scripts."""

from __future__ import annotations

import pytest

from metaunlearn.bars import ProgressBars
from metaunlearn.generation import generate_images
from tiny_models import new_sd1


def test_each_kind_of_work_has_a_bar_that_ends(capfd: pytest.CaptureFixture[str]) -> None:
    """Two labels in turn; the second comes again, as when two models are erased with one of them."""
    bars = ProgressBars()
    for label, total in (("drawing", 2), ("erasing", 3), ("erasing", 3)):
        for done in range(1, total + 1):
            bars(label, done, total)
    said = capfd.readouterr().err
    assert said.count("drawing: 100%") == 1
    assert said.count("erasing: 100%") == 2
    assert bars._bars == {}


def test_functions_of_one_kind_of_work_say_no_label(capfd: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars()
    generate_images(new_sd1(), ["a dog"] * 3, [0, 1, 2], steps=1, batch_size=2, progress=bars)
    assert "3/3" in capfd.readouterr().err
    assert bars._bars == {}


def test_work_that_was_cut_off_and_begins_again(capfd: pytest.CaptureFixture[str]) -> None:
    bars = ProgressBars()
    for done in (1, 2, 1, 2, 3):
        bars("erasing", done, 3)
    assert "erasing: 100%" in capfd.readouterr().err
