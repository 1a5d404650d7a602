"""How many parameter sets are alive at once in a meta-gradient: the doctor's count against what tensors hold."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaunlearn.config import EraseSettings
from metaunlearn.doctor.counting import parameter_copies
from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.modes import MODES
from metaunlearn.meta.objective import simulated_finetuning
from metaunlearn.parameters import Params
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

WEIGHTS = 1000
THETA: Params = {f"layer{n}": torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(n)) for n in range(4)}


class Seen(TorchDispatchMode):
    """While this is entered: the most bytes that tensors hold which any operation has made or read."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {at: (storage, size) for at, (storage, size) in self._alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made


class _Weightless(torch.autograd.Function):
    """A layer that keeps no activations, and whose parameter's gradient, of its values, is a tensor of its own."""

    @staticmethod
    def forward(ctx: Any, below: Tensor, p: Tensor) -> Tensor:
        ctx.parameter = p
        return below.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        below, here = ctx.needs_input_grad
        return (torch.zeros(()) if below else None), (ctx.parameter.detach().clone() if here else None)


def weightless(theta: Params) -> Tensor:
    """Its layers one after the other, as a network has them."""
    value = torch.ones(())
    for p in theta.values():
        value = _Weightless.apply(value, p)
    return value


def alive_in(settings: EraseSettings) -> int:
    """Sets in one meta-gradient, theta included, as Algorithm 1 asks for it in a step that is diagnosed if any."""
    [attacker] = settings.simulated
    diagnosed = settings.diagnostics_every > 0
    exact = settings.meta_gradient != "first-order"
    problem = MetaProblem(
        inner_losses=[weightless] * attacker.steps,
        inner=simulated_finetuning(THETA, attacker, settings, THETA),
        outer=weightless,
        along_path=settings.meta_loss == "path",
        with_first_order=diagnosed and exact,
        keep_final=diagnosed or settings.inner_horizon is not None,
    )
    with Seen() as seen:
        MODES[settings.meta_gradient]()(problem, THETA)
    # Beside the sets, one parameter's difference and scalars.
    return int(seen.peak / sum(p.untyped_storage().nbytes() for p in THETA.values()))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("meta_gradient", ["first-order", "gradient-difference"])
@pytest.mark.parametrize("meta_loss", ["end", "path"])
def test_counted_sets_are_those_that_are_alive(optimizer: str, meta_gradient: str, meta_loss: str) -> None:
    """For each M, diagnosed or not, with every set on the device or not. The horizon's two are the caller's: Delta, and
    a theta_0 that is not theta."""
    asked = ((0, "none"), (10, "none"), (0, 100))
    for steps, (every, horizon), store in itertools.product((1, 2, 3, 5), asked, ("device", "disk")):
        overrides = (
            f"inner_optimizer={optimizer}", f"meta_gradient={meta_gradient}", f"meta_loss={meta_loss}",
            f"inner_steps={steps}", f"diagnostics_every={every}", f"inner_store={store}", f"inner_horizon={horizon}",
            "inner_subset=method",
        )  # fmt: skip
        settings = resolve(EraseSettings, read_recipe("small").erase, overrides)
        of_horizon = 0 if horizon == "none" else 2
        assert parameter_copies(settings, meta=True) - of_horizon == alive_in(settings), overrides
