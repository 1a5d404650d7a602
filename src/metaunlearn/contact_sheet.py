"""A contact sheet: the first pictures of a set at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SHEET_PICTURES = 100
"""A contact sheet shows at most this many pictures."""
SHEET_GAP = 4
"""Pixels between two pictures of a sheet."""


def contact_sheet(files: Sequence[Path], *, side: int | None = None) -> Image.Image:
    """The pictures in ``files``, all of one size, in reading order on a nearly square white sheet.

    ``side`` scales each down to at most that many pixels a side.
    """
    pictures = []
    for file in files:
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
            if side is not None:
                pictures[-1].thumbnail((side, side))
    width, height = pictures[0].size
    columns = math.ceil(math.sqrt(len(pictures)))
    lines = math.ceil(len(pictures) / columns)
    size = (columns * (width + SHEET_GAP) - SHEET_GAP, lines * (height + SHEET_GAP) - SHEET_GAP)
    sheet = Image.new("RGB", size, "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + SHEET_GAP), index // columns * (height + SHEET_GAP)))
    return sheet
