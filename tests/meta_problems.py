"""Small meta problems for tests: a tanh network, a UNet, and how far one gradient is from another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from metaunlearn.meta.hypergradient import MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.parameters import Loss, Params, add, norm

Build = Callable[..., tuple[MetaProblem, Params]]

TAU = 0.01
"""The inner learning rate: the first-order gradient is then off by 2 % to 16 % on the networks below."""


def error(found: Params, expected: Params) -> float:
    """||found - expected|| / ||expected||, in float64."""
    expected = {name: p.double() for name, p in expected.items()}
    return norm(add({name: p.double() for name, p in found.items()}, expected, -1.0)) / norm(expected)


def meta_problem(losses: list[Loss], tau: float, adapted: frozenset[str] | None, inner_steps: int) -> MetaProblem:
    """Eq. 3 with zeta = 0.5, but for its term at theta; ``losses``: forget after finetuning, retain, one a step."""
    forget, retain, *inner_losses = losses
    return MetaProblem(
        inner_losses=inner_losses[:inner_steps],
        inner=InnerLoop(learning_rate=tau, adapted=adapted),
        outer=lambda theta: -forget(theta) - 0.5 * retain(theta),
    )


def mlp(inner_steps: int, dtype: torch.dtype = torch.float64, adapted: frozenset[str] | None = None) -> tuple:
    """A tanh network 5 -> 16 -> 3 with squared error, a fresh batch of 64 for every loss."""
    g = torch.Generator().manual_seed(0)
    theta = {
        "hidden.weight": torch.randn(16, 5, generator=g),
        "hidden.bias": torch.randn(16, generator=g),
        "out.weight": torch.randn(3, 16, generator=g) / 2,
    }

    def loss_on(x: Tensor, y: Tensor) -> Loss:
        def loss(theta: Params) -> Tensor:
            hidden = torch.tanh(x.to(dtype) @ theta["hidden.weight"].T + theta["hidden.bias"])
            return (hidden @ theta["out.weight"].T - y.to(dtype)).square().mean()

        return loss

    losses = [loss_on(torch.randn(64, 5, generator=g), torch.randn(64, 3, generator=g)) for _ in range(2 + inner_steps)]
    return meta_problem(losses, TAU, adapted, inner_steps), {name: p.to(dtype) for name, p in theta.items()}


def unet(inner_steps: int, dtype: torch.dtype = torch.float64, adapted: frozenset[str] | None = None) -> tuple:
    """A UNet2DConditionModel of 50,000 parameters on 4 x 4 latents, with its usual (fused) attention."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    theta = {name: p.detach().to(dtype) for name, p in network.named_parameters()}
    g = torch.Generator().manual_seed(1)

    def loss_on(x_t: Tensor, eps: Tensor, t: Tensor, cond: Tensor) -> Loss:
        def loss(theta: Params) -> Tensor:
            output = functional_call(network, theta, (x_t.to(dtype), t, cond.to(dtype))).sample
            return (output - eps.to(dtype)).square().mean()

        return loss

    def draw() -> Loss:
        x_t, eps = torch.randn(2, 3, 4, 4, 4, generator=g)
        return loss_on(x_t, eps, torch.randint(1000, (3,), generator=g), torch.randn(3, 5, 8, generator=g))

    return meta_problem([draw() for _ in range(2 + inner_steps)], TAU, adapted, inner_steps), theta
