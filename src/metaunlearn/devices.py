"""Whether there is such a device."""

from __future__ import annotations

import torch

from metaunlearn.errors import UserError, first_line


def check_device(device: str | torch.device) -> str:
    """The name of ``device`` if torch knows it here; else UserError."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        said = first_line(error)
        raise UserError(f"there is no device {device!r} here: {said}. Try cpu (device=..., --device).") from error
    return str(device)
