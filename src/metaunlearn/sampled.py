"""How the pictures of a folder were drawn, as the records of ``generate`` and ``evaluate`` beside them tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaunlearn.data.imagefolder import Entry, picture_file
from metaunlearn.draws import AS_IT_IS, DrawSettings
from metaunlearn.errors import UserError
from metaunlearn.evaluation import IMAGES
from metaunlearn.files import read_records
from metaunlearn.metrics.measuring import RAW
from metaunlearn.models.precision import Precision
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import RESULTS_FILE


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """How one picture was drawn."""

    seed: int
    guidance_scale: float
    steps: int
    precision: Precision
    """Of the denoiser."""


def sampled_in(folder: Path, entries: Sequence[Entry]) -> list[Sampled] | None:
    """How the pictures were drawn, if ``generate`` or ``evaluate`` did and left its records; else None."""
    try:
        known = _of_generate(folder) or _of_evaluate(folder)
    except (OSError, UserError, ValueError, LookupError, TypeError, AttributeError):  # Another tool's files.
        return None
    found = [known.get((entry.file.resolve(), entry.text)) for entry in entries]
    return None if None in found else [one for one in found if one is not None]


def _of_generate(folder: Path) -> dict[tuple[Path, str], Sampled]:
    file = folder / RUN_FILE
    request = json.loads(file.read_text(encoding="utf-8"))["request"] if file.is_file() else {}
    if request.get("command") != "generate":
        return {}
    settings = DrawSettings(**request["settings"])
    return {
        (picture_file(folder, index).resolve(), text): Sampled(
            seed=seed, guidance_scale=scale, steps=request["steps"], precision=settings.precision
        )
        for index, (text, seed, scale) in enumerate(request["images"])
    }


def _of_evaluate(folder: Path) -> dict[tuple[Path, str], Sampled]:
    out = folder.resolve().parent
    if folder.resolve().name != IMAGES or not (out / RAW).is_file() or not (out / RESULTS_FILE).is_file():
        return {}
    first, *_ = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8")).values()
    steps, precision = first["protocol"]["steps"], first["protocol"].get("precision", AS_IT_IS.precision)
    return {
        ((out / row["file_name"]).resolve(), row["prompt"]): Sampled(
            seed=row["seed"], guidance_scale=row["guidance_scale"], steps=steps, precision=precision
        )
        for _, row in read_records(out / RAW)
    }
