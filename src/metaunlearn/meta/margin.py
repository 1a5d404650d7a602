"""Self-destruction with an end: each retained picture's loss is pushed up by a margin, and no further.

Eq. 3 has -zeta [L_DM(theta_M; D_retain) - L_DM(theta; D_retain)], which has no least value. With a margin mu it becomes

    zeta mean_i max(0, mu + l_i(theta) - l_i(theta_M))

l_i: the loss of picture i, under the same noise and timestep at theta_M and at theta. Below the margin the gradient is
Eq. 3's own, direct term included; beyond it the picture has none, in either term.

It is a hinge of each picture rather than one of their mean, for two reasons. What is already destroyed does not make up
for what is not. And a mean of hinges is the mean of the means of micro-batches and of processes, which the hinge of a
mean is not. Each picture meets the margin at its own timestep; mu is in units of L_DM.

Shapes: K micro-batches, B pictures in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaunlearn.diffusion import squared_errors
from metaunlearn.meta.batches import OuterDraw
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params


@dataclass(frozen=True)
class Margin:
    """The hinge on one micro-batch."""

    width: float
    """mu, above 0."""
    before: Tensor
    """(B,) l_i(theta), constants here: their gradient is the direct term's."""

    def shortfall(self, after: Tensor) -> Tensor:
        """max(0, mu + l_i(theta) - l_i(theta_M)), for l_i(theta_M) (B,)."""
        return (self.width + self.before - after).relu()

    def active(self, after: Tensor) -> Tensor:
        """1 where a picture is short of the margin, else 0, (B,): minus the derivative of ``shortfall``."""
        return (self.shortfall(after) > 0).to(after.dtype)


def margins(model: TextToImageModel, theta: Params, parts: Sequence[OuterDraw], width: float) -> list[Margin]:
    """Of each micro-batch."""
    with torch.no_grad():
        return [Margin(width, squared_errors(model, theta, part.meta_retain.batch)) for part in parts]


def active_pictures(
    model: TextToImageModel, theta_m: Params, parts: Sequence[OuterDraw], hinges: Sequence[Margin]
) -> Tensor:
    """Which pictures are short of their margin at theta_m, (K, B)."""
    with torch.no_grad():
        return torch.stack(
            [
                hinge.active(squared_errors(model, theta_m, part.meta_retain.batch))
                for hinge, part in zip(hinges, parts, strict=True)
            ]
        )
