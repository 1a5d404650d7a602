"""The diffusion equations: noising, targets, the denoising loss, guidance, one deterministic sampling step.

Shapes: B pictures, C latent channels, h x w latent pixels, T text tokens, D text width.
Symbols: ``x_0`` a latent, ``eps`` unit Gaussian noise, ``x_t`` the noised latent, ``cond`` an encoded prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.errors import RunError, UserError
from metaunlearn.parameters import Params

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class Denoiser(Protocol):
    """What the equations need of a model; an adapter in ``models/`` provides it."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels and the prediction type."""
        ...

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The network's output for ``x_t`` (B, C, h, w) at ``t`` (B,) under ``cond`` (B rows)."""
        ...


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each training timestep carries, and what the network was trained to predict."""

    alpha_bar: Tensor
    """(timesteps,) cumulative product of 1 - beta, float32."""
    prediction_type: str
    """``"epsilon"``, ``"v_prediction"`` or ``"sample"`` (x_0 itself)."""
    sent: dict[torch.device, Tensor] = field(init=False, default_factory=dict, repr=False, compare=False)
    """``alpha_bar`` by the device that has it."""

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """Read the schedule from a diffusers scheduler; nothing is assumed."""
        kind = scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTION_TYPES:
            raise UserError(
                f"MODEL's scheduler predicts {kind!r}; this release trains {' and '.join(PREDICTION_TYPES)} models."
            )
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"MODEL's scheduler {type(scheduler).__name__} has no alphas_cumprod, so it is no DDPM-like schedule; "
                "save the pipeline with a DDIM, DPM-Solver++, PNDM, LMS or Euler scheduler."
            )
        alpha_bar = scheduler.alphas_cumprod.float().cpu().clone()
        if len(alpha_bar) != scheduler.config.num_train_timesteps:
            raise UserError(
                f"MODEL's scheduler has {scheduler.config.num_train_timesteps} timesteps (num_train_timesteps) and "
                f"{len(alpha_bar)} noise levels (trained_betas): set both to what the model was trained with."
            )
        # Some schedulers put a number next to nothing in place of the last level's 0.
        if kind == "epsilon" and (alpha_bar.min() <= 0 or scheduler.config.get("rescale_betas_zero_snr")):
            raise UserError(
                "MODEL's scheduler ends in pure noise (rescale_betas_zero_snr) but predicts 'epsilon', from which x_0 "
                "cannot be had there; save the pipeline with a scheduler whose prediction_type is 'v_prediction'."
            )
        return cls(alpha_bar=alpha_bar, prediction_type=kind)

    @property
    def timesteps(self) -> int:
        """How many training timesteps there are."""
        return len(self.alpha_bar)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar_t = self._on(t.device)[t][:, None, None, None]
        return alpha_bar_t.sqrt(), (1 - alpha_bar_t).sqrt()

    def _on(self, device: torch.device) -> Tensor:
        """``alpha_bar`` there, sent once: looked up on the host, every t would make the device wait."""
        if device not in self.sent:
            self.sent[device] = self.alpha_bar.to(device)
        return self.sent[device]

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps."""
        alpha, sigma = self._scales(t)
        return alpha.to(x_0.dtype) * x_0 + sigma.to(x_0.dtype) * eps

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should output: eps, x_0, or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0."""
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x_0
        alpha, sigma = self._scales(t)
        return alpha.to(x_0.dtype) * eps - sigma.to(x_0.dtype) * x_0

    def ddim_step(self, x_t: Tensor, output: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """One deterministic DDIM step from ``t`` to ``t_next`` (B,); ``t_next`` < 0 gives x_0 (Song et al., Eq. 12)."""
        alpha, sigma = self._scales(t)
        if self.prediction_type == "epsilon":
            eps = output
            x_0 = (x_t - sigma * eps) / alpha
        elif self.prediction_type == "sample":
            x_0 = output
            eps = (x_t - alpha * x_0) / sigma
        else:
            eps = alpha * output + sigma * x_t
            x_0 = alpha * x_t - sigma * output
        alpha_next, sigma_next = self._scales(t_next.clamp(min=0))
        moved = alpha_next * x_0 + sigma_next * eps
        return torch.where((t_next < 0)[:, None, None, None], x_0, moved)


class Batch(NamedTuple):
    """Everything one evaluation of L_DM needs; fixed, so that a loss of it is a pure function of theta."""

    x_0: Tensor
    """(B, C, h, w) scaled latents."""
    cond: Conditioning
    """B encoded prompts."""
    eps: Tensor
    """(B, C, h, w) noise."""
    t: Tensor
    """(B,) int64 timesteps."""


def squared_errors(model: Denoiser, theta: Params, batch: Batch) -> Tensor:
    """Mean squared error of each picture of ``batch``, (B,)."""
    x_t = model.schedule.add_noise(batch.x_0, batch.eps, batch.t)
    output = model.predict(theta, x_t, batch.t, batch.cond)
    return error_of_each(output, model.schedule.target(batch.x_0, batch.eps, batch.t))


def error_of_each(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each picture, (B,), of outputs and targets (B, C, h, w)."""
    if output.shape != target.shape:  # Broadcasting would make another loss of it without a word.
        shapes = f"{tuple(output.shape)}, got {tuple(target.shape)}"
        raise RunError(f"a method's target must have the shape of the model's output, {shapes}.")
    return (output - target).square().mean(dim=(1, 2, 3))


def denoising_loss(model: Denoiser, theta: Params, batch: Batch) -> Tensor:
    """L_DM(theta; batch), a scalar: E || target - f_theta(x_t, t, cond) ||^2 per latent value (paper, section 3)."""
    return squared_errors(model, theta, batch).mean()


def denoising_loss_of(model: Denoiser, batch: Batch) -> Callable[[Params], Tensor]:
    """L_DM as a function of theta alone."""
    return lambda theta: denoising_loss(model, theta, batch)


def part(batch: Batch, first: int, end: int) -> Batch:
    """Pictures ``first`` to ``end`` - 1 of ``batch``."""
    rows = slice(first, end)
    return Batch(x_0=batch.x_0[rows], cond=batch.cond[rows], eps=batch.eps[rows], t=batch.t[rows])


def joined(*batches: Batch) -> Batch:
    """Several batches as one, so that one forward pass serves them all."""
    return Batch(
        x_0=torch.cat([batch.x_0 for batch in batches]),
        cond=Conditioning.cat([batch.cond for batch in batches]),
        eps=torch.cat([batch.eps for batch in batches]),
        t=torch.cat([batch.t for batch in batches]),
    )


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + scale (c - u)."""
    return unconditional + scale * (conditional - unconditional)


def draw_timesteps(count: int, timesteps: int, generator: torch.Generator, *, stratified: bool = True) -> Tensor:
    """(count,) timesteps in [0, timesteps): uniform, or one from each of ``count`` equal strata, shuffled."""
    if not stratified:
        return torch.randint(timesteps, (count,), generator=generator)
    stratum = torch.randperm(count, generator=generator)
    position = (stratum + torch.rand(count, generator=generator)) / count
    return (position * timesteps).long().clamp(max=timesteps - 1)
