"""The network of FID: the Inception v3 that Google published for TensorFlow on 2015-12-05, up to its last pooling.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, Figures 5 to 7 and 10. The
graph of 2015 differs from the paper and from torchvision's network in what is not counted at a border and in the last
block's pooling; FID is defined on it. Parts have the names of the weights as pytorch-fid publishes them.

B images, C channels; a block takes (B, C, H, W) and joins its branches along C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299
"""Pixels a side of its images."""
FEATURES = 2048
EPSILON = 1e-3
"""Added to the variances, as in TensorFlow's graph."""


class FidInception(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] to the features FID compares, "pool3", (B, 2048). It is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2, padding=(0, 0))
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), padding=(0, 0))
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), padding=(0, 0))
        self.Mixed_5b = Block(192, _square(32))
        self.Mixed_5c = Block(256, _square(64))
        self.Mixed_5d = Block(288, _square(64))
        self.Mixed_6a = Block(288, HALVING_TO_17, halves=True)
        self.Mixed_6b = Block(768, _crossed(128))
        self.Mixed_6c = Block(768, _crossed(160))
        self.Mixed_6d = Block(768, _crossed(160))
        self.Mixed_6e = Block(768, _crossed(192))
        self.Mixed_7a = Block(768, HALVING_TO_8, halves=True)
        self.Mixed_7b = Block(1280, SPREAD)
        # The graph takes the maximum here, where every block like it, and the paper, has the average.
        self.Mixed_7c = Block(2048, SPREAD, maximum=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for name, part in self.named_children():
            if name.startswith("Mixed"):
                x = part(x)
        return x.mean(dim=(2, 3))


class Convolution(nn.Module):
    """A convolution without bias, its channels normalised by fixed statistics, ReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
    ) -> None:
        """``padding`` is by default what keeps height and width."""
        super().__init__()
        kept = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(
            before, after, kernel, stride=stride, padding=kept if padding is None else padding, bias=False
        )
        self.bn = FixedNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class FixedNorm(nn.Module):
    """(x - mean) / √(variance + ε) · weight + bias, each (C,): a batch norm that has learned, without its counter."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON)


class Step(NamedTuple):
    """One convolution of a block."""

    source: str
    """What it takes: the block's input, its pooling, or an earlier step."""
    channels: int
    kernel: tuple[int, int] = (1, 1)


Plan = Mapping[str, Step]
"""A block's convolutions by name. What no later step takes is joined, in this order."""

INPUT, POOL = "input", "pool"


class Block(nn.Module):
    """Branches side by side. In one that ``halves``, the last step of each has stride 2 and so has the pooling."""

    def __init__(self, channels: int, plan: Plan, *, halves: bool = False, maximum: bool = False) -> None:
        super().__init__()
        self.plan, self.halves, self.maximum = plan, halves, maximum
        taken = {step.source for step in plan.values()}
        self.joined = [name for name in (*plan, POOL) if name not in taken]
        widths = {INPUT: channels, POOL: channels}
        for name, (source, width, kernel) in plan.items():
            shrinks = halves and name in self.joined
            layer = Convolution(
                widths[source], width, kernel, stride=2 if shrinks else 1, padding=(0, 0) if shrinks else None
            )
            self.add_module(name, layer)
            widths[name] = width

    def forward(self, x: Tensor) -> Tensor:
        made = {INPUT: x, POOL: self._pool(x)}
        for name, step in self.plan.items():
            made[name] = self.get_submodule(name)(made[step.source])
        return torch.cat([made[name] for name in self.joined], dim=1)

    def _pool(self, x: Tensor) -> Tensor:
        if self.halves:
            return F.max_pool2d(x, 3, stride=2)
        if self.maximum:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        # TensorFlow's average at a border is over the pixels that there are.
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _square(pooled: int) -> Plan:
    """The blocks of 35 x 35 (Figure 5, with a 5 x 5 kept), whose last branch has ``pooled`` channels."""
    return {
        "branch1x1": Step(INPUT, 64),
        "branch5x5_1": Step(INPUT, 48),
        "branch5x5_2": Step("branch5x5_1", 64, (5, 5)),
        "branch3x3dbl_1": Step(INPUT, 64),
        "branch3x3dbl_2": Step("branch3x3dbl_1", 96, (3, 3)),
        "branch3x3dbl_3": Step("branch3x3dbl_2", 96, (3, 3)),
        "branch_pool": Step(POOL, pooled),
    }


HALVING_TO_17: Plan = {
    "branch3x3": Step(INPUT, 384, (3, 3)),
    "branch3x3dbl_1": Step(INPUT, 64),
    "branch3x3dbl_2": Step("branch3x3dbl_1", 96, (3, 3)),
    "branch3x3dbl_3": Step("branch3x3dbl_2", 96, (3, 3)),
}
"""From 35 x 35 (Figure 10)."""


def _crossed(inner: int) -> Plan:
    """The blocks of 17 x 17 (Figure 6): 7 x 7 as rows and columns, ``inner`` channels between."""
    return {
        "branch1x1": Step(INPUT, 192),
        "branch7x7_1": Step(INPUT, inner),
        "branch7x7_2": Step("branch7x7_1", inner, (1, 7)),
        "branch7x7_3": Step("branch7x7_2", 192, (7, 1)),
        "branch7x7dbl_1": Step(INPUT, inner),
        "branch7x7dbl_2": Step("branch7x7dbl_1", inner, (7, 1)),
        "branch7x7dbl_3": Step("branch7x7dbl_2", inner, (1, 7)),
        "branch7x7dbl_4": Step("branch7x7dbl_3", inner, (7, 1)),
        "branch7x7dbl_5": Step("branch7x7dbl_4", 192, (1, 7)),
        "branch_pool": Step(POOL, 192),
    }


HALVING_TO_8: Plan = {
    "branch3x3_1": Step(INPUT, 192),
    "branch3x3_2": Step("branch3x3_1", 320, (3, 3)),
    "branch7x7x3_1": Step(INPUT, 192),
    "branch7x7x3_2": Step("branch7x7x3_1", 192, (1, 7)),
    "branch7x7x3_3": Step("branch7x7x3_2", 192, (7, 1)),
    "branch7x7x3_4": Step("branch7x7x3_3", 192, (3, 3)),
}
"""From 17 x 17 (Figure 10)."""

SPREAD: Plan = {
    "branch1x1": Step(INPUT, 320),
    "branch3x3_1": Step(INPUT, 384),
    "branch3x3_2a": Step("branch3x3_1", 384, (1, 3)),
    "branch3x3_2b": Step("branch3x3_1", 384, (3, 1)),
    "branch3x3dbl_1": Step(INPUT, 448),
    "branch3x3dbl_2": Step("branch3x3dbl_1", 384, (3, 3)),
    "branch3x3dbl_3a": Step("branch3x3dbl_2", 384, (1, 3)),
    "branch3x3dbl_3b": Step("branch3x3dbl_2", 384, (3, 1)),
    "branch_pool": Step(POOL, 192),
}
"""The blocks of 8 x 8 (Figure 7): 3 x 3 as a row beside a column."""
