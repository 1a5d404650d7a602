"""Seconds and peak memory of one outer step at true size: Stable Diffusion 1.4 at 512 px and XL at 1024 px.

    python benchmarks/full_size.py --out benchmarks/full_size.md

The architectures are the published ones, the weights random: time and memory do not depend on what a network has
learned. A step is Algorithm 1's own, on ESD's subset u with AdamW: plain, and with the meta objective at M = 1, the
meta-gradient to first order, by gradient difference and by double backward; --set precision=bf16 and the like change
its settings. Each row is the median over rounds after one warm-up; what does not fit is said to run out of memory. The
denoiser's own copy lies on the host meanwhile, as in ``erase``; text encoders and autoencoder are not there at all.
With --memory the process may take no more than so much of the card, as on a smaller one: cuDNN's convolutions take as
much room to work in as they find, and do with less. With --generate it is pictures that are timed. Without a GPU
everything is reduced, which says nothing of the true size and only shows that the script runs.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from architectures import ARCHITECTURES
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.conditioning import Conditioning
from metaunlearn.config import EraseSettings
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.erasure.esd import BankedForgetLoss, esd_target
from metaunlearn.erasure.trajectories import TrajectoryBank
from metaunlearn.generation import generate_images
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models.memory import checkpointing, set_aside
from metaunlearn.models.precision import DTYPES
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import subset
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

MODELS = {"sd14": 512, "sdxl": 1024}
"""Pixels a side."""
STEPS = {"plain ESD": None, "first order": "first-order", "gradient difference": "gradient-difference",
         "double backward": "double-backward"}  # fmt: skip
"""meta_gradient of each kind of step; None: no meta objective."""
REDUCED: dict[str, Any] = {
    "block_out_channels": (16, 16), "sample_size": 4, "attention_head_dim": 2, "norm_num_groups": 4,
    "layers_per_block": 1, "cross_attention_dim": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "transformer_layers_per_block": 1,
}  # fmt: skip
"""What replaces the true widths without a GPU; XL keeps its additional conditioning."""
TOKENS, PICTURES, PIXELS_PER_LATENT = 77, 8, 8


class RandomModel(UNetModel):
    """An adapter around a denoiser alone: no prompt is encoded and no picture drawn."""

    def __init__(self, name: str, *, device: str, reduced: bool) -> None:
        unet = ARCHITECTURES[name].build_unet(device, **(REDUCED if reduced else {}))
        self.pipeline = SimpleNamespace(unet=unet.eval().requires_grad_(False), scheduler=DDPMScheduler())
        self.device = torch.device(device)

    def random_conditioning(self, count: int, generator: torch.Generator) -> Conditioning:
        """Of the right shapes."""
        config = self.unet.config
        tokens = torch.randn(count, TOKENS, config.cross_attention_dim, generator=generator)
        if config.addition_embed_type is None:
            return Conditioning(tokens).to(self.device)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        side = float(self.latent_shape[1] * PIXELS_PER_LATENT)
        time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]]).repeat(count, 1)
        return Conditioning(tokens, torch.randn(count, pooled, generator=generator), time_ids).to(self.device)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    model: str
    pixels: int
    batch: int
    checkpointing: bool
    step: str
    seconds: float | None
    """None: memory ran out."""
    peak_bytes: int | None
    """None: not measured, as on a CPU."""

    def text(self) -> str:
        """As Markdown."""
        seconds = "out of memory" if self.seconds is None else f"{self.seconds:.3g}"
        peak = "" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.1f}"
        on = "on" if self.checkpointing else "off"
        return f"| {self.model} | {self.pixels} | {self.batch} | {on} | {self.step} | {seconds} | {peak} |"


def run_of(model: RandomModel, step: str, settings: EraseSettings) -> Algorithm1:
    """Algorithm 1 on random data, before its first step."""
    g = torch.Generator().manual_seed(0)

    def latents(count: int) -> torch.Tensor:
        return torch.randn(count, *model.latent_shape, generator=g).to(model.device)

    def pictures() -> LatentSet:
        return LatentSet(
            mean=latents(PICTURES),
            std=latents(PICTURES).abs(),
            cond=model.random_conditioning(1, g),
            prompt_of=torch.zeros(PICTURES, dtype=torch.long),
            timesteps=model.schedule.timesteps,
        )

    bank = TrajectoryBank(
        x_t=latents(PICTURES),
        t=torch.randint(1000, (PICTURES,), generator=g).to(model.device),
        cond=model.random_conditioning(1, g),
        prompt_of=torch.zeros(PICTURES, dtype=torch.long),
        unconditional=latents(PICTURES),
        conditional=latents(PICTURES),
    )
    return Algorithm1(
        model,
        ErasureData(forget=pictures(), related=pictures(), unrelated=pictures()),
        BankedForgetLoss(bank, esd_target(bank.unconditional, bank.conditional, 1.0)),
        settings,
        trained=subset(model.parameter_names, "u"),
        meta=STEPS[step] is not None,
        seed=0,
    )


def now(device: torch.device) -> float:
    """The time when ``device`` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    model: RandomModel, step: str, batch: int, rounds: int, more: Sequence[str] = ()
) -> tuple[float | None, int | None]:
    """Median seconds of a step, and the peak of the accelerator's memory, weights included."""
    on_gpu = model.device.type == "cuda"
    mode = STEPS[step] or "first-order"
    overrides = [
        f"steps={rounds + 1}",
        f"batch_size={batch}",
        f"meta_gradient={mode}",
        "inner_steps=1",
        "diagnostics_every=0",
        *more,
    ]
    settings = resolve(EraseSettings, read_recipe("sd14").erase, overrides)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    try:
        run = run_of(model, step, settings)
        with set_aside(model.unet, model.device):  # As a run does: theta is a copy.
            run.run(None, lambda record: times.append(now(model.device)))
    except torch.cuda.OutOfMemoryError:
        return None, None
    seconds = [after - before for before, after in itertools.pairwise(times)]  # The first step is the warm-up.
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if on_gpu else None


def table(
    names: Sequence[str],
    batches: Sequence[int],
    steps: Sequence[str],
    rounds: int,
    device: str,
    *,
    checkpointed: Sequence[bool] = (False, True),
    channels_last: bool = False,
    more: Sequence[str] = (),
) -> Iterator[Row]:
    """Every combination, one after the other."""
    reduced = device == "cpu"
    for name in names:
        model = RandomModel(name, device=device, reduced=reduced)
        if channels_last:
            model.unet.to(memory_format=torch.channels_last)
        pixels = model.latent_shape[1] * PIXELS_PER_LATENT
        for on, batch, step in itertools.product(checkpointed, batches, steps):
            with checkpointing(model.unet, on):
                seconds, peak = measure(model, step, batch, rounds, more)
            gc.collect()
            yield Row(
                model=name, pixels=pixels, batch=batch, checkpointing=on, step=step, seconds=seconds, peak_bytes=peak
            )
        del model


def generation(prompts: int, precision: str, device: str) -> str:
    """How long ``prompts`` pictures by Stable Diffusion 1.4 take, one a prompt, guided, after one batch to warm up."""
    shape, reduced = ARCHITECTURES["sd14"], device == "cpu"
    unet = shape.build_unet(device, **(REDUCED | {"cross_attention_dim": 768} if reduced else {}))
    pipeline = StableDiffusionPipeline(
        vae=shape.build_vae(device), unet=unet, text_encoder=shape.build_text_encoders(device)[0],
        tokenizer=build_tokenizer(), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(DTYPES[precision])  # fmt: skip
    steps = 2 if reduced else 50

    def pictures(count: int) -> float:
        began = now(torch.device(device))
        generate_images(pipeline, ["a knife"] * count, range(count), steps=steps, batch_size=PICTURES)
        return now(torch.device(device)) - began

    pictures(PICTURES)
    seconds = pictures(prompts)
    return (
        f"sd14, {precision}: {prompts} pictures of {unet.config.sample_size * PIXELS_PER_LATENT} pixels, {steps} steps "
        f"each, in batches of {PICTURES}: {seconds:.3g} s, {prompts / seconds:.3g} a second."
    )


def header(
    device: str, rounds: int, *, channels_last: bool = False, memory: float | None = None, more: Sequence[str] = ()
) -> str:
    """Where, when and how the figures came about."""
    hardware = platform.processor() or platform.machine()
    hardware = f"CPU ({hardware}), REDUCED SIZE" if device == "cpu" else torch.cuda.get_device_name(device)
    settings = ", ".join([*more, *(["kernels channels last"] if channels_last else [])]) or "float32"
    hardware += f" held to {memory:g} GiB" if memory else ""
    return (
        f"{hardware}, torch {torch.__version__}, {datetime.date.today().isoformat()}; {settings}; M = 1, "
        f"median of {rounds} steps; random weights.\n\n"
        "| model | pixels | batch | checkpointing | step | seconds | peak GiB |\n|---|---|---|---|---|---|---|"
    )


def hold_to(gibibytes: float, device: torch.device) -> None:
    """Let this process take no more of ``device``'s memory."""
    there = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gibibytes * 2**30 / there, 1.0), device.index)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--generate", type=int, metavar="PROMPTS", help="make pictures instead, as many as I2P's 142")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="beside the recipe sd14")
    parser.add_argument("--checkpointing", choices=["off", "on", "both"], default="both")
    parser.add_argument("--channels-last", action="store_true", help="lay the denoiser's kernels so")
    parser.add_argument("--memory", type=float, metavar="GIB", help="what the process may take of the GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args(arguments)
    if given.memory is not None:
        if given.device == "cpu":
            parser.error(f"--memory {given.memory:g} holds a GPU's memory, and there is none with --device cpu")
        hold_to(given.memory, torch.device(given.device))
    if given.generate is not None:
        asked = [precision for precision in DTYPES if f"precision={precision}" in given.set]
        lines = [generation(given.generate, precision, given.device) for precision in asked or DTYPES]
        print(*lines, sep="\n")
        if given.out is not None:
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    lines = [header(given.device, given.rounds, channels_last=given.channels_last, memory=given.memory, more=given.set)]
    print(lines[0], flush=True)
    for row in table(
        given.models, given.batches, given.steps, given.rounds, given.device,
        checkpointed={"off": (False,), "on": (True,), "both": (False, True)}[given.checkpointing],
        channels_last=given.channels_last, more=given.set,
    ):  # fmt: skip
        lines.append(row.text())
        print(lines[-1], flush=True)
        if given.out is not None:  # After every row: a run that is killed leaves what it has.
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
