"""The base model's own pictures to forget and to retain, made once and shared by all methods."""

from __future__ import annotations

from pathlib import Path

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
    forget_images: int,
    retain_images: int,
    seed: int,
    device: str,
    progress: Progress | None,
) -> None:
    """``folder/forget``, ``folder/related`` and ``folder/unrelated`` as ``erase`` would make them for itself."""
    model = load(base, device)
    prompts = prompts_for(model.pipeline, [concept])
    # Only these two settings are read; the others have to be there.
    settings = EraseSettings.model_construct(forget_images=forget_images, retain_images=retain_images)
    for role in ROLES:
        own_pictures(model, role, prompts, settings, seed, folder / role, progress)
