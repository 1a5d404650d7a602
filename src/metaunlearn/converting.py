"""Making safetensors of weights that are published as pickles only: the one place where a pickle is read.

It is read with ``weights_only=True``, which builds tensors and plain containers and runs no code of the file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import save_tensors
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.files import check_new_file, path_of
from metaunlearn.metrics.inception import INCEPTION, NETWORK, trunk
from metaunlearn.metrics.nsfw import ARCHITECTURES, KIND, check_tensors
from metaunlearn.pickles import PUBLISHED

NAMES = (*ARCHITECTURES, INCEPTION)


def convert(name: str, file: Path | str, out: Path | str, *, published: bool = True) -> dict[str, Any]:
    """Write the weights ``name``, one of ``NAMES``, in the pickle ``file`` to ``out``.

    UserError when it is not the ``published`` file, holds more than tensors, or other tensors than those of ``name``.
    Returns the summary.
    """
    file, out = path_of(file), path_of(out)
    if name not in NAMES:
        raise UserError(
            f"There are no weights {name!r} to convert (name=, NAME).{did_you_mean(name, NAMES)} "
            f"There are: {', '.join(NAMES)}."
        )
    if not file.is_file():
        raise UserError(f"The weights {file} (file=, FILE) do not exist. Fetch them: {PUBLISHED[name].fetch}")
    check_new_file(out, ".safetensors")
    if published:
        PUBLISHED[name].check(file)
    tensors = _read(file)
    summary = {"name": name, "out": str(out)}
    if name == INCEPTION:
        tensors = trunk(tensors, str(file))
        save_tensors(out, tensors, {NETWORK: name})
        return {**summary, "tensors": len(tensors), "metrics": f"fid:{out}"}
    check_tensors(name, tensors, str(file))
    save_tensors(out, tensors, {KIND: name})
    clip = ARCHITECTURES[name].clip
    return {**summary, "tensors": len(tensors), "metrics": f"nsfw:{out}", "clip": clip}


def _read(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # What is no pickle makes its reader stumble in any way.
        # torch's own words are left out: they advise to let the file run its code.
        raise UserError(
            f"{file} (file=, FILE) cannot be read as weights alone ({type(error).__name__}): it is damaged, or no file "
            "of weights, or holds code, which is refused. Give the file as it is published."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} (file=, FILE) holds a {type(found).__name__}; expected tensors by name.")
    return {str(key): value.float() for key, value in found.items()}
