"""A state of a model: a pipeline, or one some of whose components lie elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from metaunlearn.models.loading import load_pipeline


def with_components(pipeline: Any, folder: Path) -> Any:
    """``pipeline`` with the components that lie in ``folder``, each in a folder of its name."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        kind = type(getattr(pipeline, part.name))
        weights = {"dtype": torch.float32, "use_safetensors": True} if issubclass(kind, torch.nn.Module) else {}
        setattr(pipeline, part.name, kind.from_pretrained(part, local_files_only=True, **weights))
    return pipeline


def load_state(base: str, erase: Path | None, attack: Path | None, at: str) -> Any:
    """``base``; or the model that erasing left in ``erase``; or that with what ``attack`` left in ``at``."""
    pipeline = load_pipeline(base if erase is None else erase)
    return pipeline if attack is None else with_components(pipeline, attack / at)
