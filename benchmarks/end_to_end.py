"""Erasing with the meta objective on Canvas: our loop beside a step-for-step equivalent of the official code's.

    python benchmarks/end_to_end.py --out benchmarks/end_to_end.md

The other loop is written from the description of the official code (commit 5a2a760), for this benchmark only. A step
of it

- samples a latent from the model being edited, guided, down to a random one of 50 DDIM steps, for ESD's loss there;
- copies the network, and sums the gradients of two sets of 30 pictures in batches of 10;
- finetunes the copy on 30 pictures in batches of 10 with a fresh AdamW, and sums the gradients of three sets there;
- encodes every picture and every caption again each time one is used.

Ours draws latents from a bank, encodes once, has no copy and takes batches of 8 (recipe ``small``). The steps of both
are timed in turn, so that a busy machine slows them alike. Making the forget and retain pictures is part of neither;
the bank, which the other loop has not, is part of ours, spread over the steps of a run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from metaunlearn.canvas.datasets import clean, hrm_m
from metaunlearn.canvas.scenes import draw, pairs_of
from metaunlearn.canvas.tasks import task_for
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.registry import configure
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import load
from metaunlearn.parameters import subset
from metaunlearn.recipe import read_recipe

CONCEPT = "knife"
SAMPLER_STEPS, GUIDANCE, ETA = 50, 3.0, 1.0
PICTURES, BATCH = 30, 10
GAMMAS = {"irt": 0.1, "tgt": 0.01, "hrm at theta'": 0.01, "tgt at theta'": 1.0, "irt at theta'": 1.0}
"""As the official scripts set them."""
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-4, 1e-4, 1.0
"""The rate is Canvas's; the scripts' 1e-5 is Stable Diffusion's."""

Pictures = tuple[Tensor, list[str]]
"""Images (30, 3, H, W) in [-1, 1] and their captions."""


class OfficialLoop:
    """The other loop. It works on the pipeline's modules, as the official code does."""

    def __init__(self, concept: str, sets: dict[str, Pictures]) -> None:
        self.model = load("canvas", "cpu")
        self.pipeline, self.sets, self.prompt = self.model.pipeline, sets, f"a {concept}"
        self.teacher = self.pipeline.unet
        self.student = deepcopy(self.teacher)
        self.trained = sorted(subset(dict(self.student.named_parameters()), "u"))
        self.student.requires_grad_(True)
        self.optimizer = self._adamw([self.student.get_parameter(name) for name in self.trained])
        self.sampler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> None:
        """One outer step."""
        loss = self._esd_loss()
        task = deepcopy(self.student)
        optimizer = self._adamw(list(task.parameters()))
        total = {name: torch.zeros_like(self.student.get_parameter(name)) for name in self.trained}
        for kind in ("irt", "tgt"):
            self._collect(task, kind, GAMMAS[kind], total)
        loss.backward()
        for batch in self._batches("hrm train"):
            self._loss(task, *batch).backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
        for kind in ("hrm", "tgt", "irt"):
            self._collect(task, kind, -GAMMAS[f"{kind} at theta'"], total)
        parameters = [self.student.get_parameter(name) for name in self.trained]
        for name, parameter in zip(self.trained, parameters, strict=True):
            parameter.grad = total[name] if parameter.grad is None else parameter.grad + total[name]
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        self.optimizer.step()
        self.student.zero_grad(set_to_none=True)

    def _esd_loss(self) -> Tensor:
        """ESD at one latent on a path of the model being edited."""
        with torch.no_grad():
            empty, asked = (self.pipeline.encode_prompt([text], "cpu", 1, False)[0] for text in ("", self.prompt))
            until = int(torch.randint(SAMPLER_STEPS, (), generator=self.generator))
            self.sampler.set_timesteps(SAMPLER_STEPS)
            x = torch.randn(1, *self.model.latent_shape, generator=self.generator)
            for t in self.sampler.timesteps[:until]:
                u, c = self.student(torch.cat([x, x]), t, encoder_hidden_states=torch.cat([empty, asked])).sample.chunk(
                    2
                )
                x = self.sampler.step(u + GUIDANCE * (c - u), t, x).prev_sample
            stride = self.model.schedule.timesteps // SAMPLER_STEPS
            first = self.model.schedule.timesteps - stride * (until + 1)
            t = torch.randint(first, first + stride, (1,), generator=self.generator)
            u = self.teacher(x, t, encoder_hidden_states=empty).sample
            c = self.teacher(x, t, encoder_hidden_states=asked).sample
        return mse_loss(self.student(x, t, encoder_hidden_states=asked).sample, u - ETA * (c - u))

    def _collect(self, task: UNet2DConditionModel, kind: str, weight: float, total: dict[str, Tensor]) -> None:
        """Add ``weight`` times the summed gradient of a set's batches."""
        for batch in self._batches(kind):
            self._loss(task, *batch).backward()
        for name in total:
            total[name] += weight * task.get_parameter(name).grad
        task.zero_grad()

    def _batches(self, kind: str) -> list[Pictures]:
        images, texts = self.sets[kind]
        return [(images[i : i + BATCH], texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]

    def _loss(self, unet: UNet2DConditionModel, images: Tensor, texts: Sequence[str]) -> Tensor:
        """L_DM on pictures and captions that are encoded for it."""
        with torch.no_grad():
            vae = self.pipeline.vae
            x_0 = vae.encode(images).latent_dist.sample(self.generator) * vae.config.scaling_factor
            cond = self.pipeline.encode_prompt(list(texts), "cpu", 1, False)[0]
        eps = torch.randn(x_0.shape, generator=self.generator)
        t = torch.randint(self.model.schedule.timesteps, (len(x_0),), generator=self.generator)
        x_t = self.model.schedule.add_noise(x_0, eps, t)
        return mse_loss(unet(x_t, t, encoder_hidden_states=cond).sample, self.model.schedule.target(x_0, eps, t))

    @staticmethod
    def _adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def pictures(concept: str) -> dict[str, Pictures]:
    """Real pictures for every set: how good they are does not matter for the time."""
    generator = torch.Generator().manual_seed(1)
    related = list(dict.fromkeys(item.label for item in task_for(concept).related))
    scenes = draw(pairs_of(related), PICTURES, generator)
    made = {"hrm": hrm_m(concept, PICTURES, generator), "hrm train": hrm_m(concept, PICTURES, generator)}
    made["irt"] = clean(concept, PICTURES, generator)
    sets = {name: (2 * images - 1, texts) for name, (images, texts) in made.items()}
    return sets | {"tgt": (scenes.images, [f"a {related[i % len(related)]}" for i in range(PICTURES)])}


def our_loop(concept: str, sets: dict[str, Pictures], mode: str, steps: int) -> tuple[Algorithm1, float]:
    """Algorithm 1 with the recipe ``small``, and what a step's share of the bank costs, in seconds."""
    model = load("canvas", "cpu")
    method = configure("esd-u-1", read_recipe("small"), [f"meta_gradient={mode}"])
    prompts = prompts_for(model.pipeline, [concept])
    task = ErasureTask(model=model, prompts=prompts, settings=method.settings, seed=0)
    began = time.perf_counter()
    forget = method.method.begin(task)
    share = (time.perf_counter() - began) / steps
    data = {
        role: LatentSet.encode(model, *sets[kind])
        for role, kind in (("forget", "hrm"), ("related", "tgt"), ("unrelated", "irt"))
    }
    run = Algorithm1(
        model, ErasureData(**data), forget, method.settings,
        trained=method.method.trained(model), meta=True, seed=0,
    )  # fmt: skip
    return run, share


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/end_to_end.md"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1000, help="outer steps that share the bank's cost")
    options = parser.parse_args()
    sets = pictures(CONCEPT)
    official = OfficialLoop(CONCEPT, sets)
    ours = {mode: our_loop(CONCEPT, sets, mode, options.steps) for mode in ("first-order", "gradient-difference")}
    loops: dict[str, Callable[[], object]] = {"official code's loop": official.step}
    loops |= {f"ours, {mode}": run.take_step for mode, (run, _) in ours.items()}
    for loop in loops.values():
        loop()
    taken = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            taken[name].append(seconds(loop))
    means = {name: statistics.fmean(times) for name, times in taken.items()}
    for mode, (_, share) in ours.items():
        means[f"ours, {mode}"] += share
    base = means["official code's loop"]
    lines = [
        "# Erasing end to end: a step of ours beside one of the official code's loop",
        "",
        f"`python benchmarks/end_to_end.py`: Canvas, {CONCEPT}, ESD-u-1 with the meta objective, mean of "
        f"{options.rounds} steps of each in turn; torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()}.",
        "",
        "| loop | seconds a step | times faster |",
        "|---|---|---|",
        *(f"| {name} | {mean:.2f} | {base / mean:.1f} |" for name, mean in means.items()),
        "",
    ]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
