"""What to type to fetch files from the hub, on a machine that reaches it."""

from __future__ import annotations

from collections.abc import Sequence

HUB_SECONDS = 10
"""How long the hub may take to say whether it has a model."""

CARD = "README.md"
"""States a model's licence; it is copied to what is made of the model."""
SAMPLING_FILE = "sampling.json"
"""Beside ``model_index.json``: the sampling settings that a pipeline was made for, unless they are the usual ones."""
CONFIGURATION = ("*.json", "*.txt")
"""Of a pipeline: all but its weights."""
PIPELINE = (*CONFIGURATION, CARD, "*/*model.safetensors", "*/*model-*.safetensors")
"""Of a pipeline: what is loaded, whole or in shards, but for ``PASSED_OVER``, and its card."""
HALF = (*CONFIGURATION, CARD, "*/*model.fp16.safetensors", "*/*model.fp16-*.safetensors")
"""The same of one that has its weights in half precision only; beside plain ones they are not read."""
PASSED_OVER = ("safety_checker/*",)


def fetch_command(
    repository: str,
    include: Sequence[str] = (),
    *,
    exclude: Sequence[str] = (),
    revision: str | None = None,
    folder: str = "",
) -> str:
    """The ``hf download`` of these files of ``repository``, into the cache or ``folder``. No pattern: all of them.

    ``hf`` takes one pattern after each ``--include``, and further ones for names of files.
    """
    words = [f"hf download {repository}", *([f"--revision {revision}"] if revision else [])]
    words += [f'--include "{pattern}"' for pattern in include]
    words += [f'--exclude "{pattern}"' for pattern in exclude]
    return " ".join([*words, *([f"--local-dir {folder}"] if folder else [])])


def fetch_pipeline(repository: str, *, folder: str = "", half: bool = False) -> str:
    """As :func:`fetch_command`, of a whole pipeline, or of one that has its weights in ``half`` precision only."""
    return fetch_command(repository, HALF if half else PIPELINE, exclude=PASSED_OVER, folder=folder)


def ways_to_fetch(repository: str, *, folder: str = "") -> str:
    """Both commands, where it is not known in which precision ``repository`` has its weights."""
    plain, half = (fetch_pipeline(repository, folder=folder, half=half) for half in (False, True))
    return f"{plain}; if its weights are there as fp16 only: {half}"
