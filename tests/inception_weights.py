"""Weights and pictures for FID's network that are the same numbers everywhere: whole numbers, scrambled and scaled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from metaunlearn.metrics.inception_network import FidInception


def uniform(count: int, salt: int) -> Tensor:
    """``count`` float64 numbers in [-1, 1), which look random."""
    x = torch.arange(count, dtype=torch.int64) + 7_919_000 * salt
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
    return (x ^ (x >> 16)).double() / 2**31 - 1


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """For each name a tensor of its shape, such that activations neither vanish nor grow through the layers."""
    found = {}
    for salt, (name, shape) in enumerate(shapes.items()):
        values = uniform(torch.Size(shape).numel(), salt).reshape(shape)
        if name.endswith("conv.weight"):
            values = values * (6 / values[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            values = 1 + values / 2
        else:
            values = values / 3
        found[name] = values.float()
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the network's tensors, by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in FidInception().state_dict().items()}


def save_published(file: Path, numbers: Mapping[str, Tensor]) -> Path:
    """A pickle of ``numbers`` as pytorch-fid has it, with the last layer and the counters; 90 MB."""
    counters = {f"{name[:-6]}num_batches_tracked": torch.tensor(0) for name in numbers if name.endswith("bn.weight")}
    last = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**numbers, **counters, **last}, file)
    return file


def pictures(count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) of whole numbers in [0, 255], as float32 in [0, 1]."""
    pixels = ((uniform(count * 3 * height * width, 99) + 1) * 128).floor()
    return (pixels.float() / 255).reshape(count, 3, height, width)
