"""LoRA (Hu et al., ICLR 2022): a low-rank change of chosen matrices is trained, the model itself stays as it is.

Shapes: W (out, in) of a linear layer or (out, in, k, k) of a convolution; A (r, in) or (r, in, k, k); B (out, r) or
(out, r, 1, 1). The trained model has W + (alpha / r) B A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.parameters import Params

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that a LoRA is usually on: those of attention."""


def target_modules(theta: Mapping[str, Tensor], targets: Sequence[str]) -> list[str]:
    """The layers of ``theta`` whose name is a target or ends with one, and that have a matrix, in order."""
    layers = [name.removesuffix(".weight") for name, p in theta.items() if name.endswith(".weight") and p.ndim >= 2]
    return [layer for layer in layers if any(f".{layer}".endswith(f".{target}") for target in targets)]


def check_targets(theta: Mapping[str, Tensor], targets: Sequence[str]) -> None:
    """UserError unless every one of the ``targets`` is a layer of ``theta`` with a matrix."""
    for target in targets:
        if not target_modules(theta, [target]):
            raise UserError(
                f"the denoiser has no linear or convolutional layer whose name ends with {target!r} "
                "(targets, --set targets=...); e.g. to_q, to_k, to_v, to_out.0, conv1."
            )


def new_factors(theta: Params, targets: Sequence[str], rank: int, generator: torch.Generator) -> Params:
    """``LAYER.lora_A`` from a Gaussian of standard deviation 1 / r, and ``LAYER.lora_B``, zero, for each target."""
    factors: Params = {}
    for layer in target_modules(theta, targets):
        W = theta[f"{layer}.weight"]
        A = torch.randn(rank, *W.shape[1:], generator=generator) / rank
        factors[f"{layer}.lora_A"] = A.to(W)
        factors[f"{layer}.lora_B"] = W.new_zeros(len(W), rank, *(1 for _ in W.shape[2:]))
    return factors


def merged(theta: Params, factors: Params, scale: float) -> Params:
    """theta with W + ``scale`` B A for every target; differentiable in the factors."""
    changed = dict(theta)
    for name, A in factors.items():
        if name.endswith(".lora_A"):
            layer = name.removesuffix(".lora_A")
            W, B = theta[f"{layer}.weight"], factors[f"{layer}.lora_B"]
            changed[f"{layer}.weight"] = W + scale * (B.flatten(1) @ A.flatten(1)).view_as(W)
    return changed
