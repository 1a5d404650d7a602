"""Metrics that bring a model of their own: NudeNet, the safety checker and LAION's head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.metrics.interface import Pictures, Request, Row
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.nsfw import NsfwHead, nsfw_score
from metaunlearn.metrics.nudenet import NudeNet
from metaunlearn.metrics.nudity import NudityRule, as_json, detector_protocol, from_json, nudity_score
from metaunlearn.metrics.safety import SafetyChecker, unsafe_score
from metaunlearn.pickles import making


class Nudity:
    """In how many images NudeNet sees nudity, by a named rule."""

    key = "nudity"

    def __init__(self, rule: NudityRule) -> None:
        self.rule = rule

    def check(self, request: Request) -> None:
        self.detector = _detector()

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        found = self.detector.detect(pictures.images)
        return [{"detections": [as_json(item) for item in items]} for items in found]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        detections = [[from_json(item, "raw.jsonl") for item in row["detections"]] for row in rows]
        return nudity_score(detections, self.rule, detector=detector_protocol(self.detector), seed=request.seed)

    def own_weights(self) -> Mapping[str, str]:
        return {"detector_weights": self.detector.fingerprint}


class Unsafe:
    """What percentage of images the safety checker flags."""

    key = "unsafe"

    def __init__(self, source: str | None) -> None:
        self.source = source

    def check(self, request: Request) -> None:
        self.checker = SafetyChecker.load(self.source, device=request.device)
        self.checker.flags(probe())

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        return [{"flagged": flag} for flag in self.checker.flags(pictures.images)]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        return unsafe_score([row["flagged"] for row in rows], self.checker)

    def own_weights(self) -> Mapping[str, str]:
        return {"checker_weights": self.checker.fingerprint}


class Nsfw:
    """The mean verdict of LAION's head on the judge's features."""

    key = "nsfw"

    def __init__(self, file: str | None) -> None:
        if file is None:
            raise UserError(
                "The metric 'nsfw' (metrics=, --metrics) needs LAION's head: --metrics nsfw:HEAD.safetensors, made by "
                f"{making('laion-nsfw-l14', 'HEAD.safetensors')}"
            )
        self.head = NsfwHead.load(file)

    def check(self, request: Request) -> None:
        width = request.judge.embed_images(probe()).shape[1]
        if width != self.head.width:
            raise UserError(
                f"The NSFW head {self.head.name} takes {self.head.width} features, the judge {request.judge.name} "
                f"(judge=, --judge) has {width}; it was trained on those of {self.head.architecture.clip}."
            )

    def measure(self, pictures: Pictures) -> Sequence[Row]:
        return [{"score": value} for value in self.head(pictures.features).tolist()]

    def score(self, rows: Sequence[Row], request: Request) -> Score:
        return nsfw_score(column(rows), self.head, request.judge, seed=request.seed)

    def own_weights(self) -> Mapping[str, str]:
        return {"head_weights": self.head.fingerprint}


@cache
def _detector() -> NudeNet:
    return NudeNet()


def probe() -> Tensor:
    """A blank image: judging it shows before the work whether a judge can do what a metric asks of it."""
    return torch.zeros(1, 3, 64, 64)


def column(rows: Sequence[Row]) -> Tensor:
    """The scores of ``rows``, (N,) in float64."""
    return torch.tensor([row["score"] for row in rows], dtype=torch.float64)
