"""What saves memory with a denoiser whose parameters are passed in: gradient checkpointing, and its own set aside.

``torch.utils.checkpoint`` runs a block again during the backward pass. By then ``functional_call`` has put the module's
own parameters back, so diffusers' ready-made checkpointing would recompute with *other* weights than the forward pass
had, and give wrong gradients without a word. Here each block remembers the tensors that it was called with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointing(unet: UNet2DConditionModel, on: bool = True) -> Iterator[None]:
    """While this is open, keep no activations inside the UNet's blocks: one more forward pass for much less memory.

    The same gradients, first and second, bit for bit up to kernels that are not deterministic.
    """
    if not on:
        yield
        return
    unet.enable_gradient_checkpointing(_checkpointed)
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


@contextmanager
def set_aside(unet: UNet2DConditionModel, device: torch.device) -> Iterator[None]:
    """While this is open, the UNet's own parameters lie on the host: a loop whose passes are all told theta reads none.

    On the CPU nothing moves. After an error it stays there: moving it back could be one error more.
    """
    if device.type != "cpu":
        unet.to("cpu")
    yield
    unet.to(device)


def _checkpointed(block: nn.Module, *inputs: Any) -> Any:
    theta: dict[str, Tensor] = dict(block.named_parameters())  # What functional_call has put there for this pass.

    def run(*again: Any) -> Any:
        return functional_call(block, theta, again)

    # In evaluation mode nothing draws random numbers, so their state need not be kept.
    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)
