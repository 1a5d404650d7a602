"""A denoiser whose parameters are shared out over the processes (FSDP2), for models that outgrow a card.

theta, and all that has its shape (gradients, the optimiser's moments, the path of the simulated finetuning, a teacher),
are dictionaries of ``DTensor``: each process holds 1/n of every tensor. While a block computes, its parameters are
whole; before and after, they are pieces.

The parameters that a pass uses are the module's own, so theta is written into them in place, before the pass and, since
another theta may have been asked for in between, before its backward pass. No other code reads the module's parameters,
so nothing needs to be put back. To autograd a pass is one function of theta, and ``torch.autograd.grad`` works as it
does without shards, but once: there is no second derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from metaunlearn.parameters import Params
from metaunlearn.shards import answered, own

BLOCKS = ("resnets", "attentions", "downsamplers", "upsamplers")
"""The parts of a UNet's blocks that are whole one at a time; what is outside them is whole during all of a pass."""


class ShardedDenoiser:
    """``unet``, which from now on belongs to this object, in pieces on ``device``."""

    def __init__(self, unet: UNet2DConditionModel, device: torch.device, *, checkpointed: bool = False) -> None:
        if checkpointed:  # torch's own: what a block computes again it computes with the module's parameters.
            unet.enable_gradient_checkpointing()
        # Trained or not, FSDP is to make the gradient of every parameter: the subset changes from pass to pass.
        unet.requires_grad_(True)
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        for block in [*_blocks(unet), unet]:
            # Also of the root: a pass under one theta must leave nothing whole to the next one's.
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        self.unet = unet
        self.held: Params = dict(unet.named_parameters())
        """What the next pass would use."""

    def parameters(self) -> Params:
        """A copy of the pieces."""
        return {name: p.detach().clone() for name, p in self.held.items()}

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, more: Mapping[str, Any]) -> Tensor:
        """The UNet's output (B, C, h, w) under ``theta`` on this process's rows.

        Its gradient is the mean over all processes' rows.
        """
        if torch.is_grad_enabled() and any(theta[name].requires_grad for name in self.held):
            output: Tensor = _Pass.apply(self, x_t, t, more, *(theta[name] for name in self.held))
            return output
        self.write(theta[name] for name in self.held)
        with torch.no_grad():
            return self.call(x_t, t, more)

    def write(self, theta: Iterator[Tensor]) -> None:
        """Put the pieces of ``theta`` into the module."""
        pieces = [own(p) for p in theta]
        torch._foreach_copy_([own(p) for p in self.held.values()], pieces)

    def call(self, x_t: Tensor, t: Tensor, more: Mapping[str, Any]) -> Tensor:
        """The module's output under what was written."""
        with answered(computing=True):
            output: Tensor = self.unet(x_t, t, **more, return_dict=False)[0]
        return output


class _Pass(torch.autograd.Function):
    """One pass as a function of theta; the module's graph inside is taken apart by a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, denoiser: ShardedDenoiser, x_t: Tensor, t: Tensor, more: Any, *theta: Tensor) -> Tensor:
        ctx.denoiser, ctx.theta = denoiser, [p.detach() for p in theta]
        denoiser.write(iter(ctx.theta))
        with torch.enable_grad():
            ctx.output = denoiser.call(x_t, t, more)
        output: Tensor = ctx.output.detach()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.denoiser.held.values()
        ctx.denoiser.write(iter(ctx.theta))
        with answered(computing=True):
            torch.autograd.backward(ctx.output, gradient)
        del ctx.output
        found = [p.grad for p in held]
        for p in held:
            p.grad = None
        wanted = zip(found, ctx.needs_input_grad[4:], strict=True)
        return None, None, None, None, *(g if needed else None for g, needed in wanted)


def _blocks(unet: UNet2DConditionModel) -> Iterator[nn.Module]:
    for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for name in BLOCKS:
            yield from getattr(part, name, None) or ()
