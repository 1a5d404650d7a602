"""Which judge is asked where ``--judge`` names none: Canvas has its own, another model has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from metaunlearn.data.concepts import is_canvas
from metaunlearn.errors import UserError
from metaunlearn.metrics.judge import Judge, load_judge


class NoJudge:
    """Stands where no judge is: metrics that bring their own model do without; whatever asks it is refused."""

    name = fingerprint = wording = "none"

    @property
    def vocabularies(self) -> tuple[tuple[str, ...], ...]:
        """None."""
        _refuse()

    def classify(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """Refused."""
        _refuse()

    def embed_images(self, images: Tensor) -> Tensor:
        """Refused."""
        _refuse()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Refused."""
        _refuse()


def judge_for(
    pipeline: Any,
    spec: Judge | str | Path | None,
    *,
    labels: Sequence[str] = (),
    device: str | torch.device = "cpu",
) -> Judge:
    """The judge ``spec``, or what :func:`load_judge` makes of it; ``None``: Canvas's own where ``pipeline`` is Canvas.

    A model erased from Canvas or attacked counts as Canvas. Any other has no judge of its own, nor have pictures of
    which nobody says what drew them (``pipeline`` None).
    """
    if not isinstance(spec, str | Path | None):
        if not any(hasattr(type(spec), function) for function in ("classify", "embed_images")):
            raise UserError(f"expected a judge (judge=, --judge): its name, or what load_judge() gives; got {spec!r}.")
        return spec
    if spec is None and (pipeline is None or not is_canvas(pipeline)):
        return NoJudge()
    return load_judge(str(spec or "canvas"), labels=labels, device=device)


def _refuse() -> NoReturn:
    raise UserError(
        "this needs a judge, and only Canvas has one of its own: name a CLIPModel or an image classifier, a folder or "
        "a hub id, e.g. openai/clip-vit-base-patch32 (judge=, --judge). 'canvas' is a judge, too, of what Canvas draws."
    )
