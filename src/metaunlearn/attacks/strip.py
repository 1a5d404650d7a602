"""One prompt and one seed, drawn after each step of an attack: the paper's Figure 7 as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from metaunlearn.generation import generate_images
from metaunlearn.pipelines import save_image

STRIP_FILE = "strip.png"
GAP, LABEL = 4, 14
"""Pixels between two pictures, and under them for the step."""


class Strip:
    """Collects the pictures in ``out/strip`` and joins them to ``out/strip.png``."""

    def __init__(self, out: Path, prompt: str, seed: int) -> None:
        self.out, self.prompt, self.seed = out, prompt, seed

    def draw(self, pipeline: Any, step: int) -> None:
        """The picture after ``step`` steps."""
        save_image(self._file(step), generate_images(pipeline, [self.prompt], [self.seed])[0])

    def join(self, steps: Sequence[int]) -> None:
        """All pictures in a row, each with its step below."""
        pictures = [Image.open(self._file(step)) for step in steps]
        width, height = pictures[0].size
        sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height + LABEL), "white")
        pen = ImageDraw.Draw(sheet)
        for number, (step, picture) in enumerate(zip(steps, pictures, strict=True)):
            left = number * (width + GAP)
            sheet.paste(picture, (left, 0))
            pen.text((left + width // 2, height + LABEL // 2), str(step), fill="black", anchor="mm")
            picture.close()
        sheet.save(self.out / STRIP_FILE)

    def _file(self, step: int) -> Path:
        return self.out / "strip" / f"{step:06d}.png"
