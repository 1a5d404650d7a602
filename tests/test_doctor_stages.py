"""The doctor on a method that goes on from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaunlearn.doctor import estimate


def test_what_erases_before_a_defence_counts() -> None:
    """IMMA's base, here esd-u-1, adds what it takes alone but for pictures, made once; memory is the larger of both."""
    alone = estimate("canvas", method="imma", overrides=("base=none",), speed=1e11)
    plain = estimate("canvas", method="esd-u-1", meta=False, speed=1e11)
    both = estimate("canvas", method="imma", speed=1e11)
    assert both.seconds_per_step == alone.seconds_per_step
    assert both.seconds == pytest.approx(plain.seconds + 200 * alone.seconds_per_step)
    assert both.memory_bytes == alone.memory_bytes > plain.memory_bytes
    large = estimate("canvas", method="esd-u-1", meta=False, overrides=("batch_size=64",), speed=1e11)
    after_it = estimate("canvas", method="imma", overrides=("base_set=batch_size=64",), speed=1e11)
    assert after_it.memory_bytes == large.memory_bytes > alone.memory_bytes
    closed = estimate("canvas", method="imma", overrides=("base=uce",), speed=1e11)
    assert closed.seconds == alone.seconds


def test_both_stages_are_measured(tiny_model: Path) -> None:
    found = estimate(tiny_model, method="imma", overrides=("base_set=steps=5000",), measured=True)
    alone = estimate(tiny_model, method="imma", overrides=("base=none",), measured=True)
    assert found.time_measured
    assert alone.time_measured
    assert found.seconds > 1.5 * alone.seconds
