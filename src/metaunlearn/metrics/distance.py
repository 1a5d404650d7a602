"""FID and KID as an evaluation runs them: distances between sets, on the judge's features or on Inception's.

B pictures in a batch, N in all, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.fid import fid_of_features, require_pairs
from metaunlearn.metrics.inception import DEFAULT_WAY, Inception, check_file, way_named
from metaunlearn.metrics.interface import Pictures, Request
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.kid import kid_of_features
from metaunlearn.metrics.own_models import probe
from metaunlearn.metrics.reference import Reference


class Distance:
    """How far the features of the images are from those of the reference: unlike other metrics it keeps no rows."""

    def __init__(self, name: str, of_features: Callable[..., Score], variant: str | None) -> None:
        """``variant`` is ``FILE`` or ``FILE@WAY``, Inception's weights and how pictures are scaled for it; by default
        the features are the judge's."""
        self.name = name
        self.of_features = of_features
        self.weights = None if variant is None else _weights(variant)
        self.source = "judge" if variant is None else variant
        """Name of the features that it is given."""

    @property
    def key(self) -> str:
        """Of its score. The way of scaling is part of it, where the weights lie is not."""
        return self.name if self.weights is None else f"{self.name}:{self.weights.way}"

    def check(self, request: Request) -> None:
        """Refuse, before images are made, what cannot be measured."""
        reference, name = self._reference(request), self.name.upper()
        require_pairs(len(reference), "the reference images (--reference)", name)
        require_pairs(len(request.draws), "the generated images (--images)", name)
        self.model: Judge | Inception = request.judge
        if self.weights is not None:
            self.model = Inception.load(*self.weights, device=request.device)
        else:
            request.judge.embed_images(probe())
        reference.features(self.model)

    def embed(self, pictures: Pictures) -> Tensor:
        """Features of a batch, (B, D)."""
        return pictures.features if self.weights is None else self.model.embed_images(pictures.images)

    def score(self, features: Tensor, request: Request) -> Score:
        """From the features of all images, (N, D)."""
        reference = self._reference(request)
        found = self.of_features(features, reference.features(self.model), self.model, seed=request.seed)
        return found.stamped(
            features="the judge's image features" if self.weights is None else "pool3 of FID's Inception",
            reference=reference.fingerprint,
            resize=reference.resize(self.model),
        )

    def own_weights(self) -> Mapping[str, str]:
        """SHA-256 of Inception's weights, once checked; none where the features are the judge's."""
        return {} if self.weights is None else {f"{self.name}_weights": self.model.fingerprint}

    def _reference(self, request: Request) -> Reference:
        if request.reference is None:
            raise UserError(
                f"The metric {self.name!r} needs real images to compare with: pass reference= (--reference DIR)."
            )
        return request.reference


class _Weights(NamedTuple):
    file: Path
    way: str


def _weights(variant: str) -> _Weights:
    """``FILE`` or ``FILE@WAY``, both there."""
    file, _, way = variant.rpartition("@")
    # A path may hold an @, too; what ends in .safetensors is all path.
    if way.endswith(".safetensors") or not file:
        file, way = variant, DEFAULT_WAY
    way_named(way)
    return _Weights(check_file(Path(file)), way)


def fid(variant: str | None) -> Distance:
    """Fréchet distance, ``fid`` or ``fid:FILE[@WAY]``."""
    return Distance("fid", fid_of_features, variant)


def kid(variant: str | None) -> Distance:
    """Kernel distance, ``kid`` or ``kid:FILE[@WAY]``."""
    return Distance("kid", kid_of_features, variant)
