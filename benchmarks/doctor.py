"""What ``metaunlearn doctor`` predicts beside what is then measured: seconds of an outer step and peak memory.

    python benchmarks/doctor.py --out benchmarks/doctor.md

Each job is predicted, run for a few steps and predicted again, in one process, round after round, because machines are
noisy; a figure is the median over rounds. Pictures and sampling paths are few, in the prediction and in the run. Memory
is above the process before any model was loaded, resident on a CPU and allocated on a GPU, and includes the pipeline.
``--clock process`` counts processor time, for a CPU that others use, too. With CUDA the last jobs are Stable Diffusion
1.4's, at its true size with random weights; ``--pixels 128 --only "SD 1.4, esd-x-1"`` runs some of them on a CPU with
20 GB to spare, on smaller pictures.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from architectures import ARCHITECTURES
from diffusers import DDIMScheduler, StableDiffusionPipeline

from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.imagefolder import ImageText
from metaunlearn.data.latents import ErasureData
from metaunlearn.doctor import JobEstimate, estimate
from metaunlearn.doctor.meter import Meter
from metaunlearn.erasure.interface import ErasureTask, OptimisedMethod
from metaunlearn.erasure.prepare import ROLES, prepare
from metaunlearn.erasure.registry import Configured, configure
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import adapt, load_pipeline
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.memory import checkpointing
from metaunlearn.recipe import read_recipe

FEW = ("forget_images=16", "retain_images=16", "bank_trajectories=16", "diagnostics_every=3")
"""The fourth step is diagnosed while a persistent attacker goes on: the most that a long run needs at once."""
SHORT_PATHS = ("bank_steps=2",)
"""Enough of them where nobody looks at what is erased."""
TOLERANCE = 0.15
DROPPED, TIMED = 2, 3
"""Steps of a run before any is timed, and those that are."""
FULL, PIXELS_PER_LATENT = 512, 8
SGD = ("inner_optimizer=sgd", "meta_gradient=gradient-difference")


class Job(NamedTuple):
    """One erasing job."""

    name: str
    method: str
    meta: bool
    overrides: tuple[str, ...] = ()


JOBS = (
    Job("esd-u-1, plain", "esd-u-1", False),
    Job("esd-x-1, plain", "esd-x-1", False),
    Job("esd-u-1, first order, M = 3, AdamW", "esd-u-1", True),
    Job("the same, batches of 4", "esd-u-1", True, ("batch_size=4",)),
    Job("the same, batches of 16", "esd-u-1", True, ("batch_size=16",)),
    Job("the same, gradient checkpointing", "esd-u-1", True, ("gradient_checkpointing=true",)),
    Job("esd-u-1, gradient difference, M = 1, SGD", "esd-u-1", True, (*SGD, "inner_steps=1")),
    Job("esd-u-1, gradient difference, M = 3, SGD", "esd-u-1", True, SGD),
    Job(
        "esd-u-1, double backward, M = 1, SGD", "esd-u-1", True,
        ("inner_optimizer=sgd", "meta_gradient=double-backward", "inner_steps=1"),
    ),
    Job("sdd, first order, M = 3, AdamW", "sdd", True, ("bank_refresh=1000",)),
    Job("uce, second stage, M = 3, AdamW", "uce", True),
)  # fmt: skip
TRUE_SIZE = (
    Job("SD 1.4, esd-x-1, plain", "esd-x-1", False),
    Job("SD 1.4, esd-x-1, first order, M = 1", "esd-x-1", True, ("meta_gradient=first-order",)),
    Job("SD 1.4, esd-x-1, gradient difference, M = 1", "esd-x-1", True, ("meta_gradient=gradient-difference",)),
    Job("SD 1.4, esd-u-1, plain", "esd-u-1", False),
    Job("SD 1.4, esd-u-1, first order, M = 1", "esd-u-1", True, ("meta_gradient=first-order",)),
    Job("SD 1.4, esd-u-1, gradient difference, M = 1", "esd-u-1", True, ("meta_gradient=gradient-difference",)),
)


@dataclass(frozen=True)
class Workplace:
    """A model, its data, and the device both are on."""

    pipeline: Any
    recipe: str
    overrides: tuple[str, ...]
    """Of every job."""
    device: str
    clock: Callable[[], float]
    loaded: int
    """Bytes that the model and its data take: what other jobs have left in the process since is not this job's."""

    def predict(self, job: Job) -> JobEstimate:
        """What the doctor says."""
        return estimate(
            self.pipeline, method=job.method, meta=job.meta, recipe=self.recipe,
            overrides=(*self.overrides, *job.overrides), device=self.device, measured=True, clock=self.clock,
        )  # fmt: skip

    def configured(self, job: Job) -> Configured:
        """Its settings."""
        return configure(job.method, read_recipe(self.recipe), [*self.overrides, *job.overrides])

    def run(self, job: Job, model: TextToImageModel, data: ErasureData, concept: str) -> tuple[float, int]:
        """Median seconds of a step, and the peak in bytes above the idle process, of the job itself."""
        chosen = self.configured(job)
        task = ErasureTask(
            model=model, prompts=prompts_for(model.pipeline, [concept]), settings=chosen.settings, seed=0
        )
        times: list[float] = []
        meter = Meter(self.device, self.clock)

        def steps() -> None:
            forget = chosen.method.begin(task) if isinstance(chosen.method, OptimisedMethod) else None
            trained = chosen.method.trained(model)
            run = Algorithm1(model, data, forget, chosen.settings, trained=trained, meta=job.meta, seed=0)
            for _ in range(DROPPED + TIMED):
                began = meter._now()
                run.take_step()
                times.append(meter._now() - began)

        gc.collect()
        with checkpointing(model.unet, chosen.settings.gradient_checkpointing):
            peak = self.loaded + meter.peak(steps)
        return statistics.median(times[DROPPED:]), peak


class Place(NamedTuple):
    """What a job needs."""

    workplace: Workplace
    model: TextToImageModel
    data: ErasureData


def rows(
    place: Workplace, jobs: Sequence[Job], model: TextToImageModel, data: ErasureData, concept: str, rounds: int
) -> Iterator[str]:
    """One line of the table for each job."""
    for job in jobs:
        predicted, measured = [place.predict(job)], []
        for _ in range(rounds):
            measured.append(place.run(job, model, data, concept))
            predicted.append(place.predict(job))
        seconds = statistics.median(one.seconds_per_step for one in predicted)
        memory = statistics.median(one.memory_bytes for one in predicted)
        cells = compared(seconds, statistics.median(one[0] for one in measured), "{:.3f}", 1.0)
        cells += compared(memory, statistics.median(one[1] for one in measured), "{:.0f}", 2.0**20)
        counted = "" if predicted[0].time_measured else " (by count)"
        yield f"| {job.name}{counted} | {' | '.join(cells)} |"


def compared(predicted: float, measured: float, form: str, unit: float) -> list[str]:
    """Both, and by how much the first is off; bold where that is too much."""
    error = predicted / measured - 1
    text = f"{100 * error:+.0f} %"
    return [
        form.format(predicted / unit), form.format(measured / unit), text if abs(error) <= TOLERANCE else f"**{text}**"
    ]  # fmt: skip


def idle_bytes(device: str) -> int:
    """Held by a process that has used a model and holds none: libraries and their caches are there."""
    estimate("canvas", device=device, measured=True, speed=1e15)
    gc.collect()
    return Meter(device).held()


def canvas(device: str, clock: Callable[[], float]) -> Place:
    """Canvas, and some pictures that it makes."""
    idle = idle_bytes(device)
    return _workplace(load_pipeline("canvas"), "small", FEW, {}, device, clock, idle)


def true_size(device: str, clock: Callable[[], float], pixels: int) -> Place:
    """Stable Diffusion 1.4 with random weights and random pictures; its tokenizer is Canvas's."""
    idle = idle_bytes(device)
    shape = ARCHITECTURES["sd14"]
    pipeline = StableDiffusionPipeline(
        vae=shape.build_vae(device), unet=shape.build_unet(device, sample_size=pixels // PIXELS_PER_LATENT),
        text_encoder=shape.build_text_encoders(device)[0], tokenizer=build_tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.rand(4, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = ImageText(noise, ["a knife"] * len(noise), [])
    return _workplace(pipeline, "sd14", (*FEW, *SHORT_PATHS), dict.fromkeys(ROLES, pictures), device, clock, idle)


def _workplace(
    pipeline: Any,
    recipe: str,
    overrides: tuple[str, ...],
    given: dict[str, ImageText],
    device: str,
    clock: Callable[[], float],
    idle: int,
) -> Place:
    model = adapt(pipeline, device)
    settings = configure("esd-u-1", read_recipe(recipe), overrides).settings
    data = prepare(model, prompts_for(pipeline, ["knife"]), given, settings, 0, None, None)
    gc.collect()
    place = Workplace(pipeline, recipe, overrides, device, clock, Meter(device).held() - idle)
    return Place(place, model, data)


def main() -> None:
    """Predict, run, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/doctor.md"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the jobs on Canvas")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--pixels", type=int, help=f"a side of Stable Diffusion's pictures; with CUDA {FULL}")
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    given = parser.parse_args()
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    lines = [
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, {given.device}, {torch.get_num_threads()} "
        f"thread(s), {given.clock} clock, {given.rounds} round(s)",
        "",
        "| job | seconds a step, predicted | measured | error | peak MiB, predicted | measured | error |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    places: list[tuple[Callable[[], Place], Sequence[Job]]] = [(lambda: canvas(given.device, clock), JOBS)]
    if torch.cuda.is_available():
        places.append((lambda: true_size("cuda", clock, given.pixels or FULL), TRUE_SIZE))
    elif given.pixels is not None:
        places.append((lambda: true_size(given.device, clock, given.pixels), TRUE_SIZE))
    for build, all_jobs in places:
        jobs = [job for job in all_jobs if given.only in job.name]
        if not jobs:
            continue
        place, model, data = build()
        for line in rows(place, jobs, model, data, "knife", given.rounds):
            lines.append(line)
            print(line, flush=True)
            given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")  # A run that is killed leaves what it has.


if __name__ == "__main__":
    main()
