"""The moving average of the trained weights: what it is, and that SDD's teacher is not averaged twice."""

from __future__ import annotations

import pytest
import torch

from meta_problems import error
from metaunlearn.erasure.registry import configure
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_recipe
from toy_denoiser import toy_run, toy_settings


def test_the_result_is_the_average_of_the_path() -> None:
    """e_n = d e_{n-1} + (1 - d) theta_n with e_0 = theta_0, from the parameters after each step."""
    overrides = ("steps=5", "batch_size=4", "inner_steps=1", "learning_rate=0.01")
    run = toy_run(toy_settings("ema_decay=0.7", *overrides))
    expected = {name: p.clone() for name, p in run.theta.items()}

    def note(_: object) -> None:
        for name, p in run.theta.items():
            expected[name] = 0.7 * expected[name] + 0.3 * p

    found = run.run(None, note)
    # The record of a step is handed over once the step is done.
    assert error(found, expected) < 1e-14
    plain = toy_run(toy_settings(*overrides)).run(None, lambda _: None)
    assert all(torch.equal(p, run.theta[name]) for name, p in plain.items())
    assert error(found, plain) > 1e-3


def test_sdds_teacher_is_the_only_average() -> None:
    """Wherever ``ema_decay`` is said, for sdd it is the teacher's."""
    recipe = read_recipe("small")
    everywhere = recipe.model_copy(update={"erase": recipe.erase | {"ema_decay": 0.5}})
    for chosen, decay in (
        (configure("sdd", recipe, ["ema_decay=0.8"]), 0.8),
        (configure("sdd", everywhere), recipe.methods["sdd"]["ema_decay"]),
    ):
        assert chosen.settings.ema_decay is None
        assert chosen.method_settings["ema_decay"] == decay
    assert configure("esd-u-1", everywhere).settings.ema_decay == 0.5
    assert configure("esd-u-1", everywhere, ["ema_decay=none"]).settings.ema_decay is None
    with pytest.raises(UserError, match="ema_decay"):
        configure("esd-u-1", recipe, ["ema_decay=1"])
