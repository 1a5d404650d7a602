"""NSFW score: the mean verdict of LAION's CLIP-based detector, about 0 to 1. An eraser wants it low.

A small head on CLIP image features (N, D) of unit length; which CLIP is part of the protocol. LAION publishes the heads
as pickles only, so they are converted once: ``metaunlearn convert laion-nsfw-l14 FILE --out HEAD.safetensors``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.checkpoint import load_tensors
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.intervals import Score, bootstrap_mean, require_data, score
from metaunlearn.metrics.judge import Judge
from metaunlearn.pickles import making

KIND = "head"
"""Key of a head file's metadata that names its architecture."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How the tensors of a head belong together."""

    layers: tuple[str, ...]
    """Linear layers in order."""
    linear: frozenset[str] = frozenset()
    """Those that, beside the last, are followed by no ReLU."""
    standardised: bool = False
    """Whether features are standardised first, by ``norm.mean`` and ``norm.variance``."""
    sigmoid: bool = False
    """Whether the output goes through one."""
    clip: str
    """Whose features it was trained on."""

    @property
    def names(self) -> frozenset[str]:
        """Of its tensors."""
        own = {f"{layer}.{part}" for layer in self.layers for part in ("weight", "bias")}
        return frozenset(own | ({"norm.mean", "norm.variance"} if self.standardised else set()))


ARCHITECTURES = {
    "laion-nsfw-l14": Architecture(
        layers=tuple(f"linear_{number}" for number in (1, 2, 3, 4)),
        standardised=True,
        sigmoid=True,
        clip="openai/clip-vit-large-patch14",
    ),
    "laion-nsfw-h14": Architecture(
        layers=tuple(f"layers.{number}" for number in (0, 3, 6, 9, 12, 15, 16)),
        linear=frozenset({"layers.15"}),
        clip="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
}
"""By the name that ``convert`` takes."""


class NsfwHead:
    """A head of one of the ``ARCHITECTURES``."""

    def __init__(self, kind: str, tensors: Mapping[str, Tensor], *, name: str) -> None:
        """UserError when ``tensors`` are not those of ``kind``."""
        self.kind = kind
        self.name = name
        self.architecture = architecture_named(kind)
        check_tensors(kind, tensors, name)
        self.tensors = {key: tensor.float() for key, tensor in tensors.items()}
        self.width = self.tensors[f"{self.architecture.layers[0]}.weight"].shape[1]
        """D, of the features that it takes."""

    @classmethod
    def load(cls, file: str | Path) -> NsfwHead:
        """Read what ``metaunlearn convert`` wrote."""
        file = Path(file)
        if file.suffix != ".safetensors" or not file.is_file():
            raise UserError(
                f"The NSFW head {file} (--metrics nsfw:FILE) is no .safetensors file here. Make one of LAION's file: "
                f"{making(next(iter(ARCHITECTURES)), 'HEAD.safetensors')}"
            )
        try:
            tensors, metadata = load_tensors(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"The NSFW head {file} (--metrics nsfw:FILE) cannot be read: {error}.") from error
        return cls(metadata.get(KIND, ""), tensors, name=file.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256(self.kind.encode())
        for key in sorted(self.tensors):
            digest.update(key.encode() + self.tensors[key].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, features: Tensor) -> Tensor:
        """The verdict on each of (N, D) CLIP features of any length, (N,)."""
        x = F.normalize(features.float(), dim=1)
        if self.architecture.standardised:
            x = (x - self.tensors["norm.mean"]) / self.tensors["norm.variance"].sqrt()
        for layer in self.architecture.layers:
            x = F.linear(x, self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"])
            if layer != self.architecture.layers[-1] and layer not in self.architecture.linear:
                x = x.relu()
        return (x.sigmoid() if self.architecture.sigmoid else x).squeeze(1)


def nsfw_score(verdicts: Tensor, head: NsfwHead, judge: Judge, *, seed: int = 0) -> Score:
    """The mean of N ``verdicts``, (N,); ``judge`` made the features, ``seed`` is that of the bootstrap."""
    require_data(len(verdicts), "the NSFW score")
    return score(
        bootstrap_mean(verdicts, torch.Generator().manual_seed(seed), bounds=(0.0, 1.0)),
        protocol={
            "metric": "nsfw",
            "unit": "mean verdict",
            "judge": judge.name,
            "judge_weights": judge.fingerprint,
            "head": head.kind,
            "head_weights": head.fingerprint,
            "rule": "mean of the head on CLIP features of unit length",
            "interval": "bootstrap over images",
        },
        raw=[{"score": value} for value in verdicts.tolist()],
    )


def architecture_named(kind: str) -> Architecture:
    """The architecture of that name; UserError lists them."""
    if kind not in ARCHITECTURES:
        raise UserError(
            f"There is no NSFW head of the kind {kind!r} (name=, NAME).{did_you_mean(kind, ARCHITECTURES)} "
            f"There are: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[kind]


def check_tensors(kind: str, tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError unless ``tensors`` have the names of ``kind`` and shapes that follow on one another."""
    architecture = architecture_named(kind)
    if set(tensors) != architecture.names:
        missing, foreign = sorted(architecture.names - set(tensors)), sorted(set(tensors) - architecture.names)
        raise UserError(
            f"{where} is no {kind}: it lacks {', '.join(missing) or 'nothing'} and has beside "
            f"{', '.join(foreign) or 'nothing'}. Name the kind that it is (name=, NAME), or another file (file=, FILE)."
        )
    weights = [tensors[f"{layer}.weight"] for layer in architecture.layers]
    fits = all(weight.ndim == 2 for weight in weights) and all(a.shape[0] == b.shape[1] for a, b in pairwise(weights))
    if not fits or weights[-1].shape[0] != 1:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights)
        raise UserError(f"{where} is no {kind}: its layers {shapes} do not follow on one another to one output.")
