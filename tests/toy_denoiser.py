"""Algorithm 1 on a denoiser of 70 numbers in float64, small enough to write every equation out beside it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.doctor.passes import gradients_in, outer_step
from metaunlearn.erasure.esd import Esd
from metaunlearn.erasure.interface import ForgetBatch
from metaunlearn.erasure.uce import Uce
from metaunlearn.meta.batches import OuterDraw, draw_attacker
from metaunlearn.meta.train import Algorithm1
from metaunlearn.parameters import Params
from metaunlearn.processes import ALONE, Processes
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

TIMESTEPS = 20
SHAPE = (1, 2, 2)
NAMES = ("attn2_hidden", "out", "time")
"""Of a toy denoiser's parameters."""


class ToyDenoiser:
    """tanh network: (x_t, t, cond) -> eps, as an adapter of ``models/`` would be."""

    latent_shape = SHAPE

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.unet = nn.Module()
        for name, shape in zip(NAMES, ((6, 8), (4, 6), (6,)), strict=True):
            self.unet.register_parameter(name, nn.Parameter(torch.randn(shape, generator=g).double() / 2))
        self.device = torch.device("cpu")
        self.schedule = NoiseSchedule(torch.linspace(0.99, 0.02, TIMESTEPS), "epsilon")

    def parameters(self) -> Params:
        return {name: p.detach().clone() for name, p in self.unet.named_parameters()}

    @property
    def parameter_names(self) -> list[str]:
        return [name for name, _ in self.unet.named_parameters()]

    def in_precision(self, precision: str) -> ToyDenoiser:
        assert precision == "float32"
        return self

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        inputs = torch.cat([x_t.flatten(1), cond.tokens.flatten(1)], dim=1)
        hidden = torch.tanh(inputs @ theta["attn2_hidden"].T + t[:, None] / TIMESTEPS * theta["time"])
        return (hidden @ theta["out"].T).view(-1, *SHAPE)


def latent_set(seed: int, count: int) -> LatentSet:
    """``count`` random pictures around a mean of their own, under one prompt of four numbers."""
    g = torch.Generator().manual_seed(seed)
    centre = 2 * torch.randn(SHAPE, generator=g).double()
    return LatentSet(
        mean=centre + torch.randn((count, *SHAPE), generator=g).double(),
        std=torch.full((count, *SHAPE), 0.01).double(),
        cond=Conditioning(torch.randn((1, 2, 2), generator=g).double()),
        prompt_of=torch.zeros(count, dtype=torch.int64),
        timesteps=TIMESTEPS,
    )


class ToyForgetLoss:
    """A regression on random points."""

    def batch(self, theta: Params, step: int, size: int, generator: torch.Generator) -> ForgetBatch:
        x_t, target = torch.randn((2, size, *SHAPE), generator=generator).double()
        t = torch.randint(TIMESTEPS, (size,), generator=generator)
        return ForgetBatch(x_t=x_t, t=t, cond=Conditioning(torch.ones(size, 2, 2).double()), target=target)


def toy_settings(*overrides: str, recipe: str = "small-unbounded") -> EraseSettings:
    """A recipe's settings with some of one's own."""
    return resolve(EraseSettings, read_recipe(recipe).erase, overrides)


def toy_run(
    settings: EraseSettings,
    *,
    meta: bool = True,
    seed: int = 0,
    forget: bool = True,
    trained: Collection[str] = NAMES,
    processes: Processes = ALONE,
) -> Algorithm1:
    """Algorithm 1 at its start; everything is trained unless it is said what."""
    model = ToyDenoiser()
    data = ErasureData(forget=latent_set(1, 30), related=latent_set(2, 30), unrelated=latent_set(3, 30))
    return Algorithm1(
        model,  # type: ignore[arg-type]
        data,
        ToyForgetLoss() if forget else None,
        settings,
        trained=trained,
        meta=meta,
        seed=seed,
        processes=processes,
    )


def drawn(run: Algorithm1, step: int | None = None) -> OuterDraw:
    """The batches of ``step``, by default of the run's next one."""
    step = run.step if step is None else step
    generator = run._generator(step)
    return run._draw(step, draw_attacker(run.settings.simulated, generator), generator)


def counted_gradients(settings: EraseSettings, *, meta: bool, forget: bool = True) -> int:
    """Gradients on ``batch_size`` pictures in an outer step, as the doctor counts them; without ``forget`` UCE's."""
    method = Esd(subset="u", eta=1.0) if forget else Uce()
    return gradients_in(outer_step(method, settings, meta=meta, paths=1), settings.batch_size)
