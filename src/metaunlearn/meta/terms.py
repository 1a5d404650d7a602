"""The part of Eq. 3 behind the simulated finetuning: outer(theta_M), or its mean over theta_1 .. theta_M.

The meta-gradient meets the theta_m one at a time, forwards to first order and backwards on the exact way; what it
needs of each is collected here. v: an adjoint, over all parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metaunlearn.parameters import Loss, Params, add, scale_in_place, value_and_gradient


class OuterTerms:
    """``count`` terms outer(theta_m) / count, in whatever order they come, and what was met there."""

    def __init__(
        self, outer: Loss, count: int, decay: Callable[[Params], Params], active: Callable[[Params], Tensor] | None
    ) -> None:
        self._outer, self._count, self._decay, self._active = outer, count, decay, active
        self._values: list[Tensor] = []
        self._shares: list[Tensor] = []
        self._sum: Params | None = None

    def gradient(self, theta_m: Params) -> Params:
        """grad outer(theta_m) / count."""
        value, gradient = value_and_gradient(self._outer, theta_m)
        self._values.append(value)
        if self._active is not None:
            self._shares.append(self._active(theta_m))
        if self._count > 1:
            scale_in_place(gradient, 1 / self._count)
        return gradient

    def without_hessians(self, m: int, theta_m: Params) -> Params:
        """v_0 of all calls so far when every H_m is zero, so that only weight decay is left on the way back."""
        v = self.gradient(theta_m)
        for _ in range(m):
            v = self._decay(v)
        self._sum = v if self._sum is None else add(self._sum, v)
        return self._sum

    def value(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(self._values).mean()

    def active(self) -> Tensor | None:
        """The mean of what ``active`` says at each theta_m."""
        return torch.stack(self._shares).mean(dim=0) if self._shares else None
