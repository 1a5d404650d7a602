"""Inception's features, on which FID is defined, from its published weights and by a named way of scaling pictures.

The weights are published as a pickle, ``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid, so they are converted
once: ``metaunlearn convert inception-fid FILE --out INCEPTION.safetensors``.

H, W: height and width of one picture; pixels are in [0, 255], as the networks' own graph takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.checkpoint import load_tensors
from metaunlearn.data.imagefolder import to_uint8
from metaunlearn.errors import UserError, did_you_mean, some_of
from metaunlearn.metrics.inception_network import FEATURES, SIZE, FidInception
from metaunlearn.metrics.judge import weights_hash
from metaunlearn.pickles import PUBLISHED, making

INCEPTION = "inception-fid"
"""The name that ``convert`` takes."""
NETWORK = "network"
"""Key of a converted file's metadata that says what it is."""
CLASSES = 1008
"""Of the last layer, which FID does not use. It tells the weights from torchvision's, which have 1,000."""
BATCH = 32
MAKE = making(INCEPTION, "INCEPTION.safetensors")
EXPECTED = f"Expected pytorch-fid's {PUBLISHED[INCEPTION].file}: {PUBLISHED[INCEPTION].fetch}"


def _clean(picture: Tensor) -> Tensor:
    """Each channel by Pillow's bicubic filter, in float32, clipped."""
    channels = [Image.fromarray(channel.numpy()) for channel in picture]
    resized = [np.array(channel.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for channel in channels]
    return (torch.from_numpy(np.stack(resized)).clamp(0, 255) - 128) / 128


def _bilinear(picture: Tensor) -> Tensor:
    """torch's bilinear resize, which skips pixels when it shrinks."""
    resized = F.interpolate(picture[None] / 255, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return resized[0] * 2 - 1


def _tensorflow(picture: Tensor) -> Tensor:
    """Bilinear as in TensorFlow's graph, where output pixel i lies at i · H / 299, without a half-pixel's shift."""
    rows, columns = (torch.arange(SIZE) * torch.tensor(length / SIZE) for length in picture.shape[1:])
    resized = _between(_between(picture.transpose(1, 2), columns).transpose(1, 2), rows)
    return (resized - 128) / 128


def _between(picture: Tensor, rows: Tensor) -> Tensor:
    """The rows at fractional positions (R,), linear between their neighbours; (C, H, W) to (C, R, W)."""
    above = rows.long()
    below = (above + 1).clamp(max=picture.shape[1] - 1)
    return picture[:, above] + (picture[:, below] - picture[:, above]) * (rows - above)[:, None]


class Scaling(NamedTuple):
    """From a picture (3, H, W) in [0, 255] to what the network takes, (3, 299, 299) around [-1, 1]."""

    prepare: Callable[[Tensor], Tensor]
    described: str
    """For the protocol of a score."""


WAYS = {
    "clean-fid": Scaling(_clean, "Pillow's bicubic filter in float32, clipped; (x - 128) / 128"),
    "pytorch-fid": Scaling(_bilinear, "torch's bilinear without antialiasing; x / 127.5 - 1"),
    "torch-fidelity": Scaling(_tensorflow, "TensorFlow 1's bilinear without antialiasing; (x - 128) / 128"),
}
"""By the package whose figures they give. FIDs of different ones cannot be compared."""
DEFAULT_WAY = "clean-fid"


class Inception:
    """The network with its way of scaling pictures."""

    def __init__(self, network: FidInception, way: str, *, name: str) -> None:
        self.network = network
        self.way = way
        self.scaling = way_named(way)
        self.name = name
        self.fingerprint = weights_hash(network)
        """SHA-256 of the weights."""

    @classmethod
    def load(cls, file: Path, way: str = DEFAULT_WAY, *, device: str | torch.device = "cpu") -> Inception:
        """Read what ``metaunlearn convert`` wrote."""
        where = _where(check_file(file))
        try:
            tensors, metadata = load_tensors(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{where} cannot be read: {error}.") from error
        if metadata.get(NETWORK) != INCEPTION:
            raise UserError(f"{where} are those of something else. Make them of pytorch-fid's weights: {MAKE}")
        network = _empty()
        network.load_state_dict(trunk(tensors, str(file)), assign=True)
        return cls(network.to(device), way, name=file.name)

    @torch.no_grad()
    def embed_images(self, images: Iterable[Tensor]) -> Tensor:
        """Features (B, 2048) float32, on the CPU, of B pictures (3, H, W) in [0, 1], which may differ in size.

        Pixels are rounded to 8 bits first, as in a file.
        """
        device = self.network.Conv2d_1a_3x3.conv.weight.device
        scaled = (self.scaling.prepare(to_uint8(image).float()) for image in images)
        found = [torch.empty(0, FEATURES)]
        while part := list(islice(scaled, BATCH)):
            found.append(self.network(torch.stack(part).to(device)).cpu())
        return torch.cat(found)


def check_file(file: Path) -> Path:
    """``file``, if it can be one of weights; UserError otherwise."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(f"{_where(file)} are no .safetensors file here. Make one of pytorch-fid's: {MAKE}")
    return file


def _where(file: Path) -> str:
    return f"Inception's weights {file} (--metrics fid:FILE, kid:FILE)"


def way_named(name: str) -> Scaling:
    """The scaling of that name; UserError lists them."""
    if name not in WAYS:
        raise UserError(
            f"There is no way {name!r} of scaling pictures for Inception (--metrics fid:FILE@WAY, kid:FILE@WAY)."
            f"{did_you_mean(name, WAYS)} There are: {', '.join(WAYS)}."
        )
    return WAYS[name]


def trunk(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Those of ``tensors`` that :class:`FidInception` has, checked to be all of it, in its order and in float32.

    The last layer and what batch norms count in training may be there beside; UserError for anything else.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in _empty().state_dict().items()}
    last = tensors.get("fc.weight")
    beside = {name for name in tensors if name.startswith("fc.") or name.endswith(".num_batches_tracked")}
    missing, foreign = sorted({*shapes} - {*tensors}), sorted({*tensors} - {*shapes} - beside)
    if missing or foreign:
        raise UserError(
            f"{where} is no {INCEPTION}: it lacks {_some(missing)} and has beside {_some(foreign)}. {EXPECTED}"
        )
    if last is not None and len(last) != CLASSES:
        raise UserError(
            f"{where} is no {INCEPTION}: its last layer has {len(last)} classes, that of FID's network {CLASSES}. "
            f"torchvision's weights, which have 1000, are another network. {EXPECTED}"
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{where} is no {INCEPTION}: {name} has the shape {tuple(tensors[name].shape)}, not {shape}."
            )
    return {name: tensors[name].float() for name in shapes}


def _empty() -> FidInception:
    """The network without numbers: drawing 22 million, to be overwritten, would touch the global random state."""
    with torch.device("meta"):
        return FidInception()


def _some(names: list[str]) -> str:
    """The first few of them."""
    return some_of(names, 3) or "nothing"
