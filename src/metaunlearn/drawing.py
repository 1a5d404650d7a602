"""How pictures are drawn, not which: what ``--set`` of ``generate`` and ``evaluate`` knows."""

from __future__ import annotations

from pydantic import Field

from metaunlearn.models.precision import Precision
from metaunlearn.settings import Settings


class DrawSettings(Settings):
    """Memory and time of drawing."""

    picture_batch: int | None = Field(default=None, gt=0)
    """Pictures that go through the model together; None: 32, fewer of more than 256 x 256 pixels."""
    precision: Precision = "float32"
    """Of the products inside the denoiser; the autoencoder and the text encoders stay as they are."""
