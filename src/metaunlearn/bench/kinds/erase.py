"""One erased model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaunlearn.erasing import erase
from metaunlearn.models import load_pipeline
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress


def make(
    folder: Path,
    *,
    base: str,
    concept: str,
    method: str,
    meta: bool,
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
    related: Sequence[str] = (),
    retain: Sequence[str] = (),
    pictures: Path | None = None,
    paths: str | None = None,
) -> None:
    """``folder`` as ``metaunlearn erase`` leaves it; a run that was killed there goes on.

    The frozen teacher's sampling paths are shared by all erasing in ``OUT/shared/PATHS``.
    """
    erase(
        load_pipeline(base),  # Not its name: a run knows a pipeline by its weights, wherever they lie.
        [concept],
        method=method,
        meta=meta,
        related=related,
        retain=retain,
        forget_data=None if pictures is None else pictures / "forget",
        retain_data=pictures,
        recipe=recipe,
        overrides=overrides,
        shared_overrides=True,
        seed=seed,
        device=device,
        out=folder,
        resume=(folder / RUN_FILE).exists(),
        shared=None if paths is None else folder.parents[1] / "shared" / paths,
        progress=progress,
    )
