"""The outer optimiser of Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError
from metaunlearn.parameters import Params, laid_out_like


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


def clipped_step(optimizer: torch.optim.Optimizer, trained: Params, gradient: Params, max_norm: float) -> Tensor:
    """One step of ``optimizer`` along the gradient of ``trained``, cut to ``max_norm``; its norm before that."""
    for name, p in trained.items():
        p.grad = laid_out_like(p, gradient[name])
    length = torch.nn.utils.clip_grad_norm_(list(trained.values()), max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return length


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"outer_optimizer adamw-8bit (--set outer_optimizer=...) needs bitsandbytes ({error}), which wants a GPU: "
            "pip install 'metaunlearn[8bit]'; or take adamw, the default."
        ) from error
    return bitsandbytes
