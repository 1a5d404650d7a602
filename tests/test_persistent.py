"""The attacker that goes on: where its turns start and end, what the gradient is there, and that it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from meta_problems import error
from metaunlearn.errors import UserError
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params, add
from test_algorithm1 import EXACT, paper_settings
from test_objectives import attacked_from, written_out
from toy_denoiser import toy_run, toy_settings

HORIZON = ("inner_horizon=5", "inner_learning_rate=0.5")
"""Three turns of two steps: the third reaches it."""


def going_on(*more: str) -> Algorithm1:
    return toy_run(paper_settings(*HORIZON, *more))


def test_turns_start_where_the_last_one_ended_until_the_horizon() -> None:
    run = going_on()
    done: list[int | None] = []
    left: Params = {}
    for step in range(9):
        assert run.attack is not None
        assert run.attack.displacement.keys() == left.keys()
        if left:
            assert error(run.attack.displacement, left) < EXACT
        turn = step % 2 == 1
        ended = attacked_from(run, add(run.theta, left) if left else run.theta)
        before = {name: p.clone() for name, p in run.theta.items()}
        done.append(run.take_step().get("attack_steps_before"))
        if turn:
            left = add(ended, before, -1.0)
        if step == 5:  # Six steps are taken, and five are the horizon.
            left = {}
    assert done == [None, 0, None, 2, None, 4, None, 0, None]


@pytest.mark.parametrize("more", [(), ("meta_loss=path",), ("zeta_margin=0.05", "batch_size=8")], ids=str)
def test_the_gradient_is_that_of_an_attack_from_there(more: tuple[str, ...]) -> None:
    run = going_on(*more)
    for step in range(4):
        assert run.attack is not None
        if step % 2 == 0:
            assert error(run.outer_gradient()[0], written_out(run)) < EXACT
        else:
            assert error(run.outer_gradient()[0], written_out(run, run.attack.displacement)) < EXACT
        if step == 3:  # The test can tell.
            assert error(run.outer_gradient()[0], written_out(run)) > 1e-2
        else:
            run.take_step()


def test_asking_for_the_gradient_moves_nobody() -> None:
    run = going_on()
    run.take_step()
    first = run.outer_gradient()[0]
    assert run.attack is not None
    assert run.attack.steps == 0
    assert error(run.outer_gradient()[0], first) == 0


def test_it_goes_on_only_in_what_it_tunes() -> None:
    run = going_on("inner_subset=x")
    for _ in range(2):
        run.take_step()
    assert run.attack is not None
    assert set(run.attack.displacement) == {"attn2_hidden"}


@pytest.mark.parametrize("killed_after", [1, 2, 4, 5, 6, 8, 9])
def test_it_resumes_bit_for_bit(killed_after: int, tmp_path: Path) -> None:
    """Before its first turn, between two, at its horizon, and in the phase that has no attacker."""
    more = ("steps=7", "heal_steps=3", "inner_optimizer=adamw", "inner_learning_rate=1e-2")
    whole: list[dict[str, Any]] = []
    expected = going_on(*more).run(None, whole.append)
    first, state = going_on(*more), tmp_path / "state.safetensors"
    for _ in range(killed_after):
        first.take_step()
    first.save(state)
    second = going_on(*more)
    second.restore(state)
    rest: list[dict[str, Any]] = []
    found = second.run(None, rest.append)
    assert rest == whole[killed_after:]
    assert all(torch.equal(p, found[name]) for name, p in expected.items())


def test_a_diagnosis_compares_both_gradients_where_the_attack_started() -> None:
    """A first-order run that asks for the exact gradient, and the other way round, at the same theta and Delta."""
    one = going_on("meta_gradient=first-order", "diagnostics_every=1", "diagnostics_exact=double-backward")
    for _ in range(3):
        one.take_step()
    other = going_on("diagnostics_every=1")
    other.theta, other.attack, other.step = one.theta, one.attack, one.step
    assert (type(one.mode()), type(other.mode())) == (FirstOrder, DoubleBackward)
    found, expected = (run.outer_gradient()[1]["diagnostics"]["first_order"] for run in (one, other))
    assert found == pytest.approx(expected, rel=1e-9)
    assert found["relative_error"] > 0.01


def test_a_horizon_within_one_turn_is_refused() -> None:
    with pytest.raises(UserError, match=r"inner_horizon = 3 is reached in one turn of 3 steps.*inner_horizon=none"):
        toy_settings("inner_horizon=3", "inner_steps=3")
    assert toy_settings("inner_horizon=4", "inner_steps=3").inner_horizon == 4
    assert toy_settings("inner_horizon=none", "inner_steps=3").inner_horizon is None


def test_a_horizon_that_is_just_reached_is_reached() -> None:
    """Two turns of two steps are a horizon of 4: the third turn starts afresh."""
    run: Algorithm1 = toy_run(paper_settings("inner_horizon=4", "inner_learning_rate=0.5"))
    assert [run.take_step().get("attack_steps_before") for _ in range(8)] == [None, 0, None, 2, None, 0, None, 2]
