"""Memory for MODEL's own pictures and sampling paths, which come before any outer step; counted on fake tensors.

Pictures are sampled ``picture_batch`` at a time, two rows of the denoiser each (guided), and decoded and encoded as
:mod:`metaunlearn.models.autoencoder` says. Sampling paths are as large as pictures to the denoiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaunlearn.conditioning import Conditioning
from metaunlearn.generation import picture_size, pictures_at_once
from metaunlearn.models.autoencoder import decoded_at_once, encoded_at_once
from metaunlearn.models.interface import TextToImageModel


@dataclass(frozen=True, kw_only=True)
class DrawingFacts:
    """Bytes that are alive at once, of one picture, beside the parameters."""

    denoised: int
    """In the denoiser, of one row."""
    decoded: int
    encoded: int
    pixels: int
    usual_batch: int
    """Pictures at a time, unless the settings say otherwise."""

    def peak(self, *, pictures: int, picture_batch: int | None, paths: int) -> int:
        """Of making and encoding so many ``pictures``, and of sampling so many ``paths``."""
        at_once = picture_batch or self.usual_batch
        batch = min(pictures, at_once)
        return max(
            2 * batch * self.denoised,
            decoded_at_once(batch, self.pixels) * self.decoded,
            min(pictures, encoded_at_once(self.pixels)) * self.encoded,
            2 * min(paths, at_once) * self.denoised,
        )


def drawing_facts(model: TextToImageModel) -> DrawingFacts:
    """Count once for one model."""
    vae = model.pipeline.vae
    autoencoder: Any = type(vae)
    denoiser: Any = type(model.unet)
    height, width = picture_size(model.pipeline)
    decoded, encoded = autoencoder_peaks(autoencoder, json.dumps(dict(vae.config)), (height, width), _latent(model))
    shapes = tuple((name, tuple(part.shape)) for name, part in model.unconditional().tensors().items())
    return DrawingFacts(
        denoised=_denoiser_peak(denoiser, json.dumps(dict(model.unet.config)), _latent(model), shapes),
        decoded=decoded,
        encoded=encoded,
        pixels=math.prod((height, width)),
        usual_batch=pictures_at_once(model.pipeline),
    )


def _latent(model: TextToImageModel) -> tuple[int, ...]:
    height, width = picture_size(model.pipeline)
    scale = model.pipeline.vae_scale_factor
    return model.latent_shape[0], height // scale, width // scale


@cache
def autoencoder_peaks(kind: Any, config: str, size: tuple[int, int], latent: tuple[int, ...]) -> tuple[int, int]:
    """Of decoding a latent of this shape, and of encoding a picture of this size; ``config``: JSON."""
    with FakeTensorMode(), torch.no_grad():
        twin = kind.from_config(json.loads(config))
        with Alive(twin) as decoding:
            twin.decode(torch.zeros(1, *latent))
        with Alive(twin) as encoding:
            twin.encode(torch.zeros(1, twin.config.in_channels, *size))
    return decoding.peak, encoding.peak


@cache
def _denoiser_peak(
    kind: Any, config: str, latent: tuple[int, ...], shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> int:
    with FakeTensorMode(), torch.no_grad():
        twin = kind.from_config(json.loads(config))
        cond = Conditioning(**{name: torch.zeros(shape) for name, shape in shapes})
        with Alive(twin) as alive:
            twin(torch.zeros(1, *latent), torch.zeros(1, dtype=torch.long), **cond.unet_inputs())
    return alive.peak


class Alive(TorchDispatchMode):
    """While this is entered: the most bytes of tensors that were made and not yet freed, parameters aside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._owned = {p.untyped_storage()._cdata for p in module.parameters()}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._owned:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {at: (storage, size) for at, (storage, size) in self._alive.items() if not storage.expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made
