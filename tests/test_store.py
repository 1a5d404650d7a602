"""Where the adjoint keeps its path: host memory gives the same bits, with two sets at most on the device."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meta_problems import mlp, unet
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaGradientMode
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.optimizers import OPTIMIZERS, update_rule
from metaunlearn.meta.store import Back, Elsewhere, Store, ToDisk, host_memory, on_device, on_disk
from metaunlearn.parameters import Params, subset

WATCHED = "hidden.weight"


class Watched:
    """A machine whose host and device are both this CPU: every move is a copy, and copies on the device are counted."""

    def __init__(self) -> None:
        self.on_device: list[weakref.ref[Tensor]] = []
        self.most = 0
        self.moved_out = 0

    def arrives(self, p: Tensor) -> Tensor:
        self.on_device.append(weakref.ref(p))
        self.most = max(self.most, len({id(found()) for found in self.on_device if found() is not None}))
        return p

    def store(self, alive: Params) -> Elsewhere:
        machine = self

        class Instrumented(Elsewhere):
            def append(self, params: Params) -> None:
                if alive.get(WATCHED) is not params[WATCHED]:
                    machine.arrives(params[WATCHED])
                super().append(params)

        def move(params: Params) -> Back:
            machine.moved_out += len(params)
            away = {name: p.clone() for name, p in params.items()}

            def back() -> Iterator[tuple[str, Tensor]]:
                found = {name: p.clone() for name, p in away.items()}
                if WATCHED in found:
                    machine.arrives(found[WATCHED])
                yield from found.items()

            return back

        return Instrumented(alive, move)


@pytest.mark.parametrize("mode", [DoubleBackward(), GradientDifference()], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_most_two_stored_sets_are_on_the_device(mode: MetaGradientMode, name: str) -> None:
    """M = 6. theta_0 is theta itself. Beside theta_M, which is part of the answer, one theta_m at a time; of the
    gradients g_{m-1} still stands while g_m is fetched. Kept in lists it would be six of each. A difference moves
    theta itself in the end, whose own bits lie elsewhere meanwhile."""
    problem, theta = mlp(6)
    machines = [Watched(), Watched()]
    stores = iter(machines)
    inner = InnerLoop(learning_rate=1e-3, optimizer=update_rule(name), store=lambda alive: next(stores).store(alive))
    expected = mode(replace(problem, inner=replace(inner, store=on_device)), theta)
    found = mode(replace(problem, inner=inner), theta)
    assert all(torch.equal(found.gradient[key], p) for key, p in expected.gradient.items())
    thetas, gradients = machines
    assert thetas.most == 2
    assert thetas.moved_out == (6 if isinstance(mode, GradientDifference) else 5) * len(theta)
    assert gradients.moved_out == (5 * len(theta) if name in {"adam", "adamw"} else 0)
    assert gradients.most <= 2


def test_the_watch_counts_what_a_list_would_keep() -> None:
    """The same counter on a store that moves nothing out sees theta_0 .. theta_6."""
    problem, theta = mlp(6)
    machine = Watched()

    class Lists(list):
        def append(self, params: Params) -> None:
            machine.arrives(params[WATCHED])
            super().append(params)

    DoubleBackward()(replace(problem, inner=InnerLoop(learning_rate=1e-3, store=lambda _: Lists())), theta)
    assert machine.most == 7


@pytest.mark.parametrize("store", [host_memory, on_disk])
@pytest.mark.parametrize("part", ["all", "some"])
def test_other_places_give_the_same_bits(part: str, store: Store) -> None:
    problem, theta = unet(3, torch.float32)
    adapted = None if part == "all" else subset(theta, "x")
    kept = InnerLoop(learning_rate=1e-3, adapted=adapted, optimizer=update_rule("adamw"))
    before = {name: p.clone() for name, p in theta.items()}
    for mode in (FirstOrder(), DoubleBackward(), GradientDifference()):
        expected = mode(replace(problem, inner=kept), theta).gradient
        found = mode(replace(problem, inner=replace(kept, store=store)), theta).gradient
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], p) for key, p in expected.items())
        assert all(torch.equal(theta[name], p) for name, p in before.items())


def test_theta_is_put_back_whatever_happens_while_it_is_moved() -> None:
    """A difference moves theta itself where its bits can lie elsewhere: a pass that fails leaves it as it was."""
    problem, theta = mlp(1, torch.float32)
    before, passes = {name: p.clone() for name, p in theta.items()}, 0

    def failing(at: Params) -> Tensor:
        nonlocal passes
        passes += 1
        if passes == 3:
            assert at[WATCHED].data_ptr() == theta[WATCHED].data_ptr()
            assert not torch.equal(at[WATCHED], before[WATCHED])
            raise KeyboardInterrupt
        return problem.inner_losses[0](at)

    inner = replace(problem.inner, store=on_disk)
    with pytest.raises(KeyboardInterrupt):
        GradientDifference()(replace(problem, inner=inner, inner_losses=[failing]), theta)
    assert all(torch.equal(theta[name], p) for name, p in before.items())


def test_host_memory_of_a_cpu_is_where_everything_is() -> None:
    """A set "moved" there would be the same tensors, and theta would not come back from them."""
    assert host_memory({"tuned": torch.zeros(2)}) == []


@pytest.mark.parametrize("store", [host_memory, on_disk])
def test_a_stack_elsewhere(store: Store) -> None:
    alive = {"frozen": torch.zeros(2), "tuned": torch.zeros(2)}
    stack = store(alive)
    sets = [alive, *({"frozen": alive["frozen"], "tuned": torch.full((2,), float(n))} for n in (1, 2))]
    for params in sets:
        stack.append(params)
    assert len(stack) == 3

    def values(found: Iterable[Params]) -> list[float]:
        found = list(found)
        assert all(params["frozen"] is alive["frozen"] for params in found)
        return [params["tuned"][0].item() for params in found]

    assert values(stack) == [0, 1, 2]
    assert stack[-1] is sets[2]
    assert values([stack[0], stack[-2]]) == [0, 1]
    assert values([stack.pop(), stack.pop()]) == [2, 1]
    stack.append(sets[1])
    assert values([stack.pop(), stack.pop()]) == [1, 0]
    assert len(stack) == 0
    with pytest.raises(IndexError):
        stack.pop()


def test_files_go_when_nobody_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    back = ToDisk()({"p": torch.ones(2, dtype=torch.bfloat16)})
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(dict(back())["p"], torch.ones(2, dtype=torch.bfloat16))
    del back
    assert list(tmp_path.iterdir()) == []
