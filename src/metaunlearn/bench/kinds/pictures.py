"""The base model's own pictures to forget and to retain, made once and shared by all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.erasure.prepare import ROLES, own_pictures
from metaunlearn.models import load
from metaunlearn.runs import Progress


def make(
    folder: Path,
    *,
    base: str,
    concept: str,
    settings: Mapping[str, Any],
    seed: int,
    device: str,
    progress: Progress | None,
    related: Sequence[str] = (),
    retain: Sequence[str] = (),
) -> None:
    """``folder/forget``, ``folder/related`` and ``folder/unrelated`` as ``erase`` would make them for itself.

    ``settings`` are those named by ``PICTURE_SETTINGS``.
    """
    model = load(base, device)
    prompts = prompts_for(model.pipeline, [concept], related=related, retain=retain)
    # Only the settings of pictures are read; the others have to be there.
    of_pictures = EraseSettings.model_construct(**settings)
    for role in ROLES:
        own_pictures(model, role, prompts, of_pictures, seed, folder / role, progress)
