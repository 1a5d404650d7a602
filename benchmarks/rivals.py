"""The meta-gradient by the two libraries that people differentiate training loops with: ``higher`` and ``TorchOpt``.

Both keep the whole inner loop in one graph. They work on modules, so a module here holds theta and computes any loss of
it. ``pip install -c constraints.txt -e '.[rivals]'``.
"""

from __future__ import annotations

import warnings

import higher
import torch
import torchopt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.parameters import Loss, Params


class Holder(nn.Module):
    """theta as a module's parameters; a call computes a loss of them."""

    def __init__(self, theta: Params) -> None:
        super().__init__()
        self.keys = {name: name.replace(".", "__") for name in theta}
        for name, key in self.keys.items():
            self.register_parameter(key, nn.Parameter(theta[name].clone()))

    def forward(self, loss: Loss) -> Tensor:
        """``loss`` at the parameters as they are now."""
        return loss({name: getattr(self, key) for name, key in self.keys.items()})


def by_higher(problem: MetaProblem, theta: Params) -> Params:
    """``higher.innerloop_ctx`` around a ``torch.optim.SGD``."""
    holder = Holder(theta)
    start = dict(zip(theta, holder.parameters(), strict=True))
    optimizer = torch.optim.SGD(start.values(), lr=problem.inner.learning_rate)
    with (
        sdpa_kernel(SDPBackend.MATH),
        higher.innerloop_ctx(holder, optimizer, copy_initial_weights=False) as (moving, steps),
    ):
        for loss in problem.inner_losses:
            steps.step(moving(loss))
        return _gradient(moving(problem.outer), start)


def by_torchopt(problem: MetaProblem, theta: Params) -> Params:
    """``torchopt.MetaSGD``, which puts differentiable parameters into the module at every step."""
    holder = Holder(theta)
    start = dict(zip(theta, holder.parameters(), strict=True))
    optimizer = torchopt.MetaSGD(holder, lr=problem.inner.learning_rate)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loss in problem.inner_losses:
            optimizer.step(holder(loss))
        return _gradient(holder(problem.outer), start)


def _gradient(outer: Tensor, start: Params) -> Params:
    return dict(zip(start, torch.autograd.grad(outer, list(start.values())), strict=True))
