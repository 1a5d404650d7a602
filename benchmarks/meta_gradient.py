"""Time, memory and error of each meta-gradient, in units of one gradient of L_DM.

    python benchmarks/meta_gradient.py --out benchmarks/meta_gradient.md

A small UNet2DConditionModel is trained briefly on synthetic patterns (a random network has little curvature), then the
variants run in turn, round after round, so that a busy machine slows them alike; each time is the median over rounds of
the ratio to the gradient measured in the same round. Memory is the most that tensors hold at once, above what they hold
before: what a GPU's allocator counts, too, without what a CPU's keeps back. Errors are relative to the unrolled double
backward of the same problem in float64.

``--stable-diffusion`` takes Stable Diffusion 1.4's denoiser at a quarter of its width instead, with random weights.
Latents of half its side (32 for 512 pixels, 48 for 768) keep the share that self-attention has of the arithmetic.
``--clock process`` counts processor time, for a CPU that others use, too.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from architectures import ARCHITECTURES
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from metaunlearn.doctor.meter import Meter
from metaunlearn.meta.hypergradient import DoubleBackward, FirstOrder, GradientDifference, MetaGradientMode, MetaProblem
from metaunlearn.meta.inner import InnerLoop
from metaunlearn.meta.store import on_disk
from metaunlearn.models.memory import checkpointing
from metaunlearn.parameters import Loss, Params, add, mean_of, norm, value_and_gradient

LATENT_CHANNELS = 4
TOKENS = 8
INNER_STEPS = (1, 3, 5)
RELATIVE_STEPS = (1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 1e-8)


Variant = Callable[[MetaProblem, Params], Params]
"""The gradient through the inner loop, one way or another."""


class Workload(NamedTuple):
    """A network and the meta problem on it."""

    theta: Params
    problem: Callable[[int, float], MetaProblem]
    """(M, tau) -> the meta problem."""
    direct: Loss
    """Eq. 3's term at theta, whose gradient every variant adds."""
    gradient: Callable[[], object]
    """One gradient of L_DM, the unit of everything."""
    unet: UNet2DConditionModel


def small(channels: tuple[int, ...]) -> UNet2DConditionModel:
    """A UNet with attention at every level."""
    return UNet2DConditionModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def quarter_of_stable_diffusion() -> UNet2DConditionModel:
    """Stable Diffusion 1.4's denoiser with a quarter of its channels, in two heads of 40 for eight."""
    return ARCHITECTURES["sd14"].build_unet(
        "cpu",
        block_out_channels=(80, 160, 320, 320),
        attention_head_dim=2,
        cross_attention_dim=192,
        norm_num_groups=16,
    )


def build(
    network: Callable[[], UNet2DConditionModel],
    latent: int,
    batch: int,
    train_steps: int,
    device: str,
    dtype: torch.dtype,
) -> Workload:
    """A network trained for ``train_steps`` on fixed patterns; all draws are seeded."""
    shape = (LATENT_CHANNELS, latent, latent)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = network().to(device)
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(8, *shape, generator=generator)
    prompts = torch.randn(8, TOKENS, unet.config.cross_attention_dim, generator=generator)

    def l_dm(classes: tuple[int, ...]) -> Loss:
        """L_DM on a fresh batch of some of the patterns, fixed from now on."""
        index = torch.tensor(classes)[torch.randint(len(classes), (batch,), generator=generator)]
        t = torch.randint(1000, (batch,), generator=generator)
        eps = torch.randn(batch, *shape, generator=generator)
        alpha_bar_t = torch.cos(t / 1000 * torch.pi / 2).square()[:, None, None, None]
        x_t = alpha_bar_t.sqrt() * patterns[index] + (1 - alpha_bar_t).sqrt() * eps

        def loss(theta: Params) -> Tensor:
            at = next(iter(theta.values()))
            inputs = (x_t.to(at), t.to(at.device), prompts[index].to(at))
            return (functional_call(unet, theta, inputs).sample - eps.to(at)).square().mean()

        return loss

    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for _ in range(train_steps):
        optimizer.zero_grad()
        l_dm(tuple(range(8)))(dict(unet.named_parameters())).backward()
        optimizer.step()
    theta = {name: p.detach().to(dtype) for name, p in unet.named_parameters()}
    forget = [l_dm((0,)) for _ in range(max(INNER_STEPS))]
    forget_outer, retain, single = l_dm((0,)), l_dm((1, 2, 3)), l_dm((0,))

    def problem(inner_steps: int, tau: float) -> MetaProblem:
        return MetaProblem(
            inner_losses=forget[:inner_steps],
            inner=InnerLoop(learning_rate=tau),
            outer=mean_of([lambda at: -2 * forget_outer(at), lambda at: -retain(at)]),
            keep_final=False,
        )

    return Workload(theta, problem, lambda at: 0.5 * retain(at), lambda: value_and_gradient(single, theta), unet)


def unrolled(problem: MetaProblem, theta: Params) -> Params:
    """The whole inner loop in one graph, differentiated at the end: the reference, and what autodiff does unaided."""
    with sdpa_kernel(SDPBackend.MATH):
        start = {name: p.clone().requires_grad_() for name, p in theta.items()}
        at = start
        for loss in problem.inner_losses:
            gradient = torch.autograd.grad(loss(at), list(at.values()), create_graph=True)
            at = {name: p - problem.inner.learning_rate * g for (name, p), g in zip(at.items(), gradient, strict=True)}
        return dict(zip(start, torch.autograd.grad(problem.outer(at), list(start.values())), strict=True))


def whole(variant: Variant, work: Workload, inner_steps: int, tau: float, *, checkpointed: bool = False) -> Params:
    """d L_meta / d theta: the part through the inner loop by ``variant``, and the gradient of the term at theta.

    ``checkpointed`` passes keep nothing inside the network's blocks.
    """
    with checkpointing(work.unet, checkpointed):
        through = variant(work.problem(inner_steps, tau), work.theta)
        return add(through, value_and_gradient(work.direct, work.theta).gradient)


def difference_on_disk(problem: MetaProblem, theta: Params) -> Params:
    """With ``inner_store = "disk"``: on a CPU the only place that is not the device's own memory."""
    inner = replace(problem.inner, store=on_disk)
    return GradientDifference()(replace(problem, inner=inner), theta).gradient


def by(mode: MetaGradientMode) -> Variant:
    """The gradient that ``mode`` finds."""
    return lambda problem, theta: mode(problem, theta).gradient


CHECKPOINTED = "the same, and gradient checkpointing"

VARIANTS: dict[str, Variant] = {
    "first order": by(FirstOrder()),
    "unrolled, `create_graph`": unrolled,
    "adjoint, double backward": by(DoubleBackward()),
    "adjoint, gradient difference": by(GradientDifference()),
    "the same, sets on disk": difference_on_disk,
    CHECKPOINTED: difference_on_disk,
}

try:  # pip install -c constraints.txt -e '.[rivals]'
    from rivals import by_higher, by_torchopt
except ImportError as missing:
    print(f"without {missing.name}")
else:
    VARIANTS |= {"unrolled by `higher`": by_higher, "unrolled by TorchOpt": by_torchopt}


def peak(call: Callable[[], object], meter: Meter) -> int:
    """The most bytes that tensors hold during a call, above those before it."""
    if meter.device.type == "cuda":
        return meter.peak(call)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    results = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in results if event.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))


def relative_error(found: Params, exact: Params) -> float:
    """||found - exact|| / ||exact|| in the precision of ``exact``."""
    found = {name: found[name].to(p.dtype) for name, p in exact.items()}
    return norm(add(found, exact, -1.0)) / norm(exact)


def costs(
    work: Workload, reference: Workload | None, tau: float, inner: tuple[int, ...], rounds: int, meter: Meter
) -> list[str]:
    """The rows of the table of time, memory and, beside a ``reference``, error, for each M of ``inner``."""
    cells: dict[str, list[str]] = {name: [] for name in VARIANTS}
    work.gradient()
    unit_memory = peak(work.gradient, meter)
    for inner_steps in inner:
        exact = whole(unrolled, reference, inner_steps, tau) if reference else None
        calls = {
            name: functools.partial(whole, variant, work, inner_steps, tau, checkpointed=name == CHECKPOINTED)
            for name, variant in VARIANTS.items()
        }
        ratios: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            unit = statistics.median(meter.once(work.gradient) for _ in range(3))
            for name, call in calls.items():
                ratios[name].append(meter.once(call) / unit)
        for name, call in calls.items():
            memory = peak(call, meter) / unit_memory
            cells[name] += [f"{statistics.median(ratios[name]):.1f}", f"{memory:.2f}"]
            cells[name] += [] if exact is None else [f"{relative_error(call(), exact):.1e}"]
    columns = ("time", "memory", "error") if reference else ("time", "memory")
    header = [f"{what} M={m}" for m in inner for what in columns]
    return _table(["meta-gradient", *header], [[name, *row] for name, row in cells.items()])


def errors_by_step(work: dict[torch.dtype, Workload], tau: float, inner_steps: int) -> list[str]:
    """The rows of the table of errors by relative step."""
    exact = whole(unrolled, work[torch.float64], inner_steps, tau)
    rows = []
    for step in RELATIVE_STEPS:
        difference = by(GradientDifference(relative_step=step))
        found = [whole(difference, w, inner_steps, tau) for w in work.values()]
        rows.append([f"{step:.0e}", *(f"{relative_error(one, exact):.1e}" for one in found)])
    return _table(["relative step", *(str(dtype).removeprefix("torch.") for dtype in work)], rows)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description="Cost and error of each meta-gradient.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/meta_gradient.md"))
    parser.add_argument("--channels", default="32,64", help="UNet channels per level")
    parser.add_argument("--stable-diffusion", action="store_true", help="its denoiser at a quarter of the width")
    parser.add_argument("--latent", type=int, default=8, help="pixels a side of the latents")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train-steps", type=int, default=300, help="0 keeps the random weights")
    parser.add_argument("--tau", type=float, default=1e-2, help="inner learning rate")
    parser.add_argument("--inner-steps", default=",".join(map(str, INNER_STEPS)), help="each M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-errors", action="store_true", help="time and memory alone: nothing in float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    args = parser.parse_args()
    meter = Meter(args.device, time.perf_counter if args.clock == "wall" else time.process_time)
    channels = tuple(int(c) for c in args.channels.split(","))
    inner = tuple(int(m) for m in args.inner_steps.split(","))
    network = quarter_of_stable_diffusion if args.stable_diffusion else functools.partial(small, channels)
    work = {
        dtype: build(network, args.latent, args.batch, args.train_steps, args.device, dtype)
        for dtype in ((torch.float32,) if args.no_errors else (torch.float32, torch.float64))
    }
    single = work[torch.float32]
    lines = [
        "# The cost and the error of each meta-gradient",
        "",
        f"`python benchmarks/meta_gradient.py`: channels {single.unet.config.block_out_channels}, "
        f"{sum(p.numel() for p in single.theta.values()) / 1e6:.2f} M parameters, "
        f"latents {args.latent} x {args.latent}, batch {args.batch}, "
        f"{args.train_steps} training steps, tau {args.tau:g}; torch {torch.__version__}, {args.device}, "
        f"{torch.get_num_threads()} thread(s), {platform.machine()}. Time and memory in units of one gradient of L_DM; "
        "error relative to the unrolled double backward in float64. The network runs in float32.",
        "",
        *costs(single, work.get(torch.float64), args.tau, inner, args.rounds, meter),
        "",
    ]
    if not args.no_errors:
        by_step = errors_by_step(work, args.tau, inner_steps=3)
        lines += ["Relative error of the difference by its relative step, M = 3:", "", *by_step, ""]
    args.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
