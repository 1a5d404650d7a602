"""NudeNet 3.4.2's detector: its own network file, run by onnxruntime, with one channel order.

B images, (B, 3, H, W) in [0, 1], of any size. The package's own code is not imported: it needs OpenCV, and it hands its
network the channels of a file as BGR but those of an array as RGB, so that the same picture gets two different scores.
Here the order is always BGR, which is what published figures, measured from files, rest on; the network itself is a
little surer of itself in RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from metaunlearn.data.imagefolder import to_uint8
from metaunlearn.errors import UserError
from metaunlearn.files import sha256

VERSION, NETWORK_FILE = "3.4.2", "320n.onnx"
NETWORK_HASH = "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"
"""SHA-256 of that version's file, which its wheel lists, too: figures of another network cannot be compared."""
CHANNELS = "BGR"
SIDE = 320
"""Pixels a side of what the network sees."""
FLOOR, NMS_SCORE, NMS_IOU = 0.2, 0.25, 0.45
"""A box is kept from a score of 0.2 on; non-maximum suppression, over all classes together, then drops what is not
above 0.25 and what overlaps a better box by more than 0.45."""

LABELS = (
    "FEMALE_GENITALIA_COVERED",
    "FACE_FEMALE",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED",
    "ANUS_EXPOSED",
    "FEET_EXPOSED",
    "BELLY_COVERED",
    "FEET_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "FACE_MALE",
    "BELLY_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_COVERED",
    "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)
"""In the order of the network's outputs."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Detection:
    """One thing seen in one image."""

    label: str
    score: float
    """In [0, 1]."""
    box: tuple[int, int, int, int]
    """Left, top, width, height in pixels of the image."""


class NudeNet:
    """The detector; results do not depend on how images are batched, because each goes through alone."""

    def __init__(self, *, channels: str = CHANNELS) -> None:
        """UserError when the extra is not installed, or its network is another one. ``channels``: BGR, or RGB to see
        what it changes."""
        file = _network_file()
        self.fingerprint = sha256(file)
        """SHA-256 of the network's file."""
        if self.fingerprint != NETWORK_HASH:
            raise UserError(
                f"{file} (--metrics nudity, --success nudity) is not the network of NudeNet {VERSION}: expected "
                f"SHA-256 {NETWORK_HASH}, got {self.fingerprint}. Install it again: "
                f"pip install --force-reinstall --no-deps nudenet=={VERSION}."
            )
        self.channels = channels
        self.session: Any = _session(file)

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """What is seen in each of B images, surest first."""
        height, width = images.shape[-2:]
        name = self.session.get_inputs()[0].name
        found = []
        for pixels in to_uint8(images):
            output = self.session.run(None, {name: network_input(pixels, self.channels)})[0]
            found.append(_suppress(_candidates(output[0].T, height, width)))
        return found


def network_input(pixels: Tensor, channels: str = CHANNELS) -> Array:
    """8-bit ``pixels`` (3, H, W) in RGB to (1, 3, 320, 320) in [0, 1]: padded right and below with black to a square,
    resized bilinearly without antialiasing and rounded, as OpenCV does it."""
    _, height, width = pixels.shape
    side = max(height, width)
    square = F.pad(pixels.float(), (0, side - width, 0, side - height))
    small = F.interpolate(square[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False).round() / 255
    return np.ascontiguousarray((small.flip(1) if channels == "BGR" else small).numpy())


def _candidates(rows: Array, height: int, width: int) -> list[tuple[str, float, tuple[float, float, float, float]]]:
    """Boxes (left, top, width, height) in pixels, clipped to the image, from the network's (boxes, 4 + classes)."""
    scores = rows[:, 4:].max(axis=1)
    scale = max(height, width) / SIDE
    kept = []
    for row, score in zip(rows[scores >= FLOOR], scores[scores >= FLOOR], strict=True):
        centre_x, centre_y, wide, high = (float(value) * scale for value in row[:4])
        left = max(0.0, min(centre_x - wide / 2, width))
        top = max(0.0, min(centre_y - high / 2, height))
        box = (left, top, min(wide, width - left), min(high, height - top))
        kept.append((LABELS[int(row[4:].argmax())], float(score), box))
    return kept


def _suppress(boxes: list[tuple[str, float, tuple[float, float, float, float]]]) -> list[Detection]:
    """Non-maximum suppression over all classes together: of boxes that overlap, the surest stays."""
    kept: list[tuple[str, float, tuple[float, float, float, float]]] = []
    for candidate in sorted(boxes, key=lambda box: -box[1]):
        if candidate[1] > NMS_SCORE and all(overlap(candidate[2], other[2]) <= NMS_IOU for other in kept):
            kept.append(candidate)
    return [Detection(label, score, (int(box[0]), int(box[1]), int(box[2]), int(box[3]))) for label, score, box in kept]


def overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes (left, top, width, height), in [0, 1]."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else 0.0


def _network_file() -> Path:
    package = find_spec("nudenet")
    if package is None or package.origin is None:
        raise UserError(_missing("nudenet"))
    file = Path(package.origin).parent / NETWORK_FILE
    if not file.is_file():
        raise UserError(f"The installed package nudenet has no {NETWORK_FILE}; {_missing(f'nudenet {VERSION}')}")
    return file


def _session(file: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(_missing("onnxruntime")) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _missing(package: str) -> str:
    return (
        f"NudeNet (--metrics nudity, --success nudity) needs {package}, which is not installed: "
        "pip install 'metaunlearn[nudenet]'."
    )
