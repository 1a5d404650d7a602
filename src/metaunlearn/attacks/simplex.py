"""The relaxation that UnlearnDiffAtk optimises: K words, each a point of the simplex over the vocabulary.

Shapes: P (K, V), rows that sum to 1; K words to find, V tokens in the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def project_rows(Y: Tensor) -> Tensor:
    """The point of the probability simplex nearest to each row of Y (K, V) (Duchi et al., ICML 2008, Figure 1).

    It is max(y - mu, 0) with mu such that the row sums to 1: with u the row in descending order, mu is
    (u_1 + ... + u_j - 1) / j for the largest j at which u_j still lies above it.
    """
    u = Y.sort(dim=1, descending=True).values
    j = torch.arange(1, Y.shape[1] + 1, dtype=Y.dtype, device=Y.device)
    mus = (u.cumsum(dim=1) - 1) / j
    last = (u > mus).sum(dim=1, keepdim=True) - 1
    return (Y - mus.gather(1, last)).clamp(min=0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, P: Tensor, drawn: Tensor) -> Tensor:
        return F.one_hot(drawn, P.shape[1]).to(P)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return F.hardtanh(grad_output), None


def sample_words(P: Tensor, generator: torch.Generator) -> Tensor:
    """One word for each row of P, drawn by its probabilities, as one-hot rows (K, V).

    Straight-through: the gradient with respect to P is the one with respect to the one-hot rows, clipped to [-1, 1]
    (hardtanh). Drawing itself counts as constant.
    """
    drawn = torch.multinomial(P.detach().cpu(), 1, generator=generator).squeeze(1)
    sampled: Tensor = _StraightThrough.apply(P, drawn.to(P.device))
    return sampled
