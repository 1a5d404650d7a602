"""A step-for-step equivalent of the official code's loop, on Canvas: what the benchmarks compare ours with.

It is written from the description of the official code (commit 5a2a760), for these benchmarks only. A step of it

- samples a latent from the model being edited, guided, down to a random one of 50 DDIM steps, for ESD's loss there;
- copies the network, and sums the gradients of two sets of 30 pictures in batches of 10;
- finetunes the copy on 30 pictures in batches of 10 with a fresh AdamW, and sums the gradients of three sets there;
- encodes every picture and every caption again each time one is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from metaunlearn.canvas.datasets import clean, hrm_m
from metaunlearn.canvas.scenes import draw, pairs_of
from metaunlearn.canvas.tasks import task_for
from metaunlearn.models import load
from metaunlearn.parameters import subset

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

    def __init__(self, concept: str, sets: dict[str, Pictures], seed: int = 0) -> None:
        self.model = load("canvas", "cpu")
        self.pipeline, self.sets, self.prompt = self.model.pipeline, sets, f"a {concept}"
        self.teacher = self.pipeline.unet
        self.student = deepcopy(self.teacher)
        self.trained = sorted(subset(dict(self.student.named_parameters()), "u"))
        self.student.requires_grad_(True)
        self.optimizer = self._adamw([self.student.get_parameter(name) for name in self.trained])
        self.sampler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.generator = torch.Generator().manual_seed(seed)

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


def pictures(concept: str, seed: int = 1) -> dict[str, Pictures]:
    """Real pictures for every set."""
    generator = torch.Generator().manual_seed(seed)
    related = list(dict.fromkeys(item.label for item in task_for(concept).related))
    scenes = draw(pairs_of(related), PICTURES, generator)
    made = {"hrm": hrm_m(concept, PICTURES, generator), "hrm train": hrm_m(concept, PICTURES, generator)}
    made["irt"] = clean(concept, PICTURES, generator)
    sets = {name: (2 * images - 1, texts) for name, (images, texts) in made.items()}
    return sets | {"tgt": (scenes.images, [f"a {related[i % len(related)]}" for i in range(PICTURES)])}
