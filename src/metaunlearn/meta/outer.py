"""The outer optimiser of Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError


def check_outer_optimizer(settings: EraseSettings) -> None:
    """Refuse, before any work, an optimiser whose package is missing."""
    if settings.outer_optimizer == "adamw-8bit":
        _bitsandbytes()


def outer_optimizer(parameters: Sequence[Tensor], settings: EraseSettings) -> torch.optim.Optimizer:
    """AdamW over ``parameters``; with ``adamw-8bit`` its two moments take a quarter of the memory each."""
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.outer_optimizer == "adamw-8bit":
        optimizer: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(list(parameters), **options)
        return optimizer
    # Fused: one pass over the parameters, and their step counts stay where they are.
    return torch.optim.AdamW(list(parameters), fused=True, **options)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"outer_optimizer adamw-8bit (--set outer_optimizer=...) needs bitsandbytes ({error}), which wants a GPU: "
            "pip install 'metaunlearn[8bit]'; or take adamw, the default."
        ) from error
    return bitsandbytes
