"""Which meta-gradient a run takes: by name, and what ``auto`` finds out."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meta_problems import error, mlp, unet
from metaunlearn.errors import UserError
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradientMode,
    MetaProblem,
)
from metaunlearn.meta.modes import AUTO_STEPS, chosen_step, resolve, resolve_in_memory, with_step
from metaunlearn.meta.products import RELATIVE_STEPS
from metaunlearn.parameters import Params, same
from metaunlearn.processes import Processes
from toy_denoiser import toy_run, toy_settings


def test_names() -> None:
    problem, theta = mlp(1)
    expected = {
        "first-order": FirstOrder(),
        "double-backward": DoubleBackward(),
        "gradient-difference": GradientDifference(),
    }
    for name, mode in expected.items():
        assert resolve(name, theta, problem) == mode
    with pytest.raises(UserError, match=r"'gradient-diff'.*gradient-difference, auto.*Did you mean"):
        resolve("gradient-diff", theta, problem)


def test_auto_measures_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    problem, theta = unet(1, torch.float32)
    with caplog.at_level(logging.INFO):
        assert isinstance(resolve("auto", theta, problem), GradientDifference)
    assert "relative error" in caplog.text


def test_auto_takes_the_step_that_the_model_wants() -> None:
    """A ripple cos(k theta) makes the difference wrong by (k step)^2 / 6 in its part: the shortest step wins."""
    problem, theta = mlp(1)
    [smooth] = problem.inner_losses
    rippled = replace(
        problem, inner_losses=[lambda at: smooth(at) + 1e-10 * torch.cos(1e6 * at["hidden.weight"]).mean()]
    )
    chosen = resolve("auto", theta, rippled)
    assert chosen == GradientDifference(relative_step=AUTO_STEPS[-1] * RELATIVE_STEPS[torch.float64])
    exact = DoubleBackward()(rippled, theta).gradient
    assert error(chosen(rippled, theta).gradient, exact) < error(GradientDifference()(rippled, theta).gradient, exact)


def test_auto_falls_back_when_the_difference_is_off(caplog: pytest.LogCaptureFixture) -> None:
    """A loss with ripples far shorter than the difference's step: their curvature is real, and the step misses it."""
    problem, theta = mlp(1, torch.float32)
    [smooth] = problem.inner_losses
    rough = replace(
        problem, inner_losses=[lambda at: smooth({name: p + 1e-10 * torch.sin(1e6 * p) for name, p in at.items()})]
    )
    with caplog.at_level(logging.INFO):
        assert resolve("auto", theta, rough) == DoubleBackward()
    assert "double-backward, because" in caplog.text


def test_auto_in_half_precision_needs_no_probe(caplog: pytest.LogCaptureFixture) -> None:
    problem, theta = mlp(1, torch.bfloat16)
    with caplog.at_level(logging.INFO):
        assert resolve("auto", theta, problem) == DoubleBackward()
    assert "bfloat16" in caplog.text


@pytest.mark.parametrize(("fits", "tried", "checked"), [(8, [8], True), (2, [8, 4, 2], True), (1, [8, 4, 2], False)])
def test_auto_checks_itself_with_as_many_pictures_as_fit(
    caplog: pytest.LogCaptureFixture, fits: int, tried: list[int], *, checked: bool
) -> None:
    """Of the smallest batch the double backward may not fit either: then the difference is taken as it is."""
    problem, theta = mlp(1)
    sizes = []

    def probes(batch_size: int) -> list[MetaProblem]:
        sizes.append(batch_size)

        def outer(at: Params) -> torch.Tensor:
            if batch_size > fits:
                raise torch.OutOfMemoryError("full")
            return problem.outer(at)

        return [replace(problem, outer=outer)]

    with caplog.at_level(logging.INFO):
        mode = resolve_in_memory("auto", theta, probes, 8)
    assert isinstance(mode, GradientDifference)
    assert sizes == tried
    assert ("relative error" in caplog.text) is checked
    assert ("unchecked" in caplog.text) is not checked


class Pretended(Processes):
    """Processes that are not there: their answers are ``others``'."""

    def __init__(self, count: int, others: Iterator[list[float]]) -> None:
        super().__init__(count=count)
        object.__setattr__(self, "others", others)

    def highest(self, mine: Sequence[float]) -> list[float]:
        return [max(pair) for pair in zip(mine, next(self.others), strict=True)]  # type: ignore[attr-defined]


FITS, FULL = [0.0, 0.0, 0.0, 0.0], [1.0, math.inf, math.inf, math.inf]


@pytest.mark.parametrize(
    ("start", "count", "tried"), [(16, 4, [16, 8]), (12, 2, [12]), (24, 3, [24, 12, 6]), (4, 4, [4])]
)
def test_auto_tries_what_processes_can_share(start: int, count: int, tried: list[int]) -> None:
    """As many pictures of either kind for each: 12 / 2 = 6 would be 3 related and 3 unrelated ones for 2 processes."""
    _, theta = mlp(1)
    sizes = []

    def probes(batch_size: int) -> list[MetaProblem]:
        sizes.append(batch_size)
        raise torch.OutOfMemoryError("full")

    processes = Pretended(count, itertools.repeat(FITS))
    assert resolve_in_memory("auto", theta, probes, start, processes=processes) == GradientDifference()
    assert sizes == tried


def test_auto_goes_by_the_process_that_has_least_memory_and_by_the_largest_error() -> None:
    """Another is out of memory at first; then its error tells against the step that is best here."""
    problem, theta = mlp(1)
    sizes = []

    def probes(batch_size: int) -> list[MetaProblem]:
        sizes.append(batch_size)
        return [problem]

    steps = []
    for worst in range(3):
        errors = [1e-4 if k == worst else 1e-5 * (k + 1) for k in range(3)]
        processes = Pretended(2, iter([FULL, [0.0, *errors]]))
        steps.append(resolve_in_memory("auto", theta, probes, 8, processes=processes).relative_step)
    usual = RELATIVE_STEPS[torch.float64]
    assert steps == [AUTO_STEPS[k] * usual for k in (1, 0, 0)]
    assert sizes == [8, 4] * 3
    broken = Pretended(2, iter([[0.0, math.inf, math.inf, math.inf]]))
    assert resolve_in_memory("auto", theta, probes, 8, processes=broken) == DoubleBackward()


@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("number", [0, 3])
def test_probes_of_processes_send_nothing(monkeypatch: pytest.MonkeyPatch, number: int, *, forget: bool) -> None:
    """Nobody is connected here. A first stage and a second; batches that are halved as far as they may be."""
    asked = []

    def highest(self: Processes, mine: Sequence[float]) -> list[float]:
        asked.append(list(mine))
        return list(mine) if len(asked) > 1 else FULL

    monkeypatch.setattr(Processes, "highest", highest)
    settings = toy_settings("batch_size=16", "accumulation=2", "inner_horizon=none", "meta_gradient=auto")
    run = toy_run(settings, forget=forget, processes=Processes(number=number, count=4))
    assert isinstance(run.mode(), GradientDifference)
    assert len(asked) == 2
    assert 0 < max(asked[1][1:]) < 1e-3


def test_only_auto_takes_a_probe() -> None:
    _, theta = mlp(1)

    def probes(batch_size: int) -> list[MetaProblem]:
        raise AssertionError

    assert resolve_in_memory("double-backward", theta, probes, 8) == DoubleBackward()


@pytest.mark.parametrize("name", ["auto", "gradient-difference"])
def test_a_resumed_run_takes_the_mode_that_the_first_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And probes nothing again: at other weights, or with other memory, it might choose otherwise."""
    settings = toy_settings("batch_size=4", "inner_horizon=none", f"meta_gradient={name}")
    one, other = toy_run(settings), toy_run(settings)
    one.take_step()
    one.save(tmp_path / "state.safetensors")
    if name == "auto":
        monkeypatch.setattr("metaunlearn.meta.train.resolve_in_memory", None)
    other.restore(tmp_path / "state.safetensors")
    assert other.mode() == one.mode()
    assert other.take_step() == one.take_step()
    assert same(other.theta, one.theta)


@pytest.mark.parametrize("mode", [DoubleBackward(), GradientDifference(), GradientDifference(relative_step=3e-6)])
def test_what_was_chosen_as_a_number(mode: MetaGradientMode) -> None:
    _, theta = mlp(1, torch.float32)
    step = chosen_step(mode, theta)
    again = with_step(step, "ieee")
    assert type(again) is type(mode)
    assert chosen_step(again, theta) == step
    assert chosen_step(FirstOrder(), theta) is None
