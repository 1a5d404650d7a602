"""One tensor of the original layout and the tensor, or three tensors, of diffusers that hold the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Form = Literal["same", "pixelwise", "transposed", "stacked"]


class Link(NamedTuple):
    """Names on both sides, and how the shapes differ."""

    original: str
    diffusers: tuple[str, ...]
    form: Form = "same"
    """``pixelwise``: (O, I) is a 1 x 1 convolution (O, I, 1, 1) in the original; ``transposed``: (O, I) is (I, O);
    ``stacked``: queries, keys and values, three of (O, ...), are one of (3 O, ...)."""


def to_original(link: Link, tensors: Sequence[Tensor]) -> Tensor:
    """What the original layout holds, from what diffusers holds; views where possible."""
    if link.form == "stacked":
        return torch.cat(list(tensors))
    (tensor,) = tensors
    if link.form == "pixelwise":
        return tensor[:, :, None, None]
    return tensor.T if link.form == "transposed" else tensor


def to_diffusers(link: Link, tensor: Tensor) -> list[Tensor]:
    """The inverse of :func:`to_original`."""
    if link.form == "stacked":
        return list(tensor.chunk(3))
    if link.form == "pixelwise" and tensor.ndim == 4:  # Some tools have squeezed it already.
        tensor = tensor[:, :, 0, 0]
    return [tensor.T if link.form == "transposed" else tensor]
