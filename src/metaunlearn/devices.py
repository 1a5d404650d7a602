"""Whether there is such a device, here or at all."""

from __future__ import annotations

import torch

from metaunlearn.errors import UserError, first_line


def check_name(device: str) -> None:
    """UserError when torch has no such device anywhere; this machine may lack it."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"there is no device {device!r} (device=..., --device): {first_line(error)}.") from error


def check_device(device: str | int | torch.device) -> str:
    """The name of ``device`` if torch knows it here; else UserError."""
    try:
        torch.empty(0, device=device)
        name = str(torch.device(device))  # Which takes no None.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        said = first_line(error)
        raise UserError(f"there is no device {device!r} here: {said}. Try cpu (device=..., --device).") from error
    return name
