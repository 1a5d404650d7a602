"""The trajectory bank: a teacher's guided sampling paths, computed once and trained on many times.

Every stored row is one latent of one path with the teacher's two predictions there, so an ESD step samples nothing and
evaluates no teacher. Each path has its own random offset of timesteps, so together the paths cover all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from metaunlearn.checkpoint import load_kept, save_tensors, step_generator
from metaunlearn.conditioning import Conditioning
from metaunlearn.diffusion import guided
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.errors import RunError
from metaunlearn.generation import pictures_at_once
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.precision import in_precision, teachers_answer
from metaunlearn.parameters import Params
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count, labelled
from metaunlearn.shards import are_pieces

BANK_SETTINGS = ("bank_trajectories", "bank_steps", "bank_guidance", "teacher_precision", "picture_batch")
"""Keys of :class:`~metaunlearn.config.EraseSettings` that the frozen teacher's paths depend on."""
DRAWN_TOGETHER = 32
"""Paths whose starts are one draw of the generator, however many of them are sampled at once."""
NOT_FINITE = (
    "the model's sampling paths are not finite. In float16 large numbers overflow: with teacher_precision=fp16, take "
    "bf16 or float32 (--set teacher_precision=bf16); else the model's own weights, or bank_guidance, are to blame."
)


@dataclass(frozen=True)
class TrajectoryBank:
    """R rows of (latent, timestep, prompt, the teacher's predictions)."""

    x_t: Tensor
    """(R, C, h, w)."""
    t: Tensor
    """(R,) int64."""
    cond: Conditioning
    """P rows: the distinct prompts, encoded."""
    prompt_of: Tensor
    """(R,) row of ``cond``."""
    unconditional: Tensor
    """(R, C, h, w) the teacher's output for the empty prompt."""
    conditional: Tensor
    """(R, C, h, w) the teacher's output for the row's prompt."""

    def __len__(self) -> int:
        return len(self.x_t)

    def tensors(self) -> dict[str, Tensor]:
        """As one flat file holds it."""
        rows = {name: value for name, value in vars(self).items() if name != "cond"}
        return rows | self.cond.tensors("cond.")

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device | str) -> TrajectoryBank:
        """From what :meth:`tensors` gave, for a model on ``device``; row numbers stay on the host."""
        rows = {name: value.to(device) for name, value in tensors.items() if not name.startswith("cond.")}
        rows["prompt_of"] = tensors["prompt_of"]
        return cls(cond=Conditioning.of_tensors(tensors, "cond.").to(device), **rows)


@torch.no_grad()
def sample_trajectories(
    model: TextToImageModel,
    theta: Params,
    prompts: Sequence[str],
    *,
    count: int,
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
    batch_size: int = DRAWN_TOGETHER,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> TrajectoryBank:
    """Sample ``count`` paths of ``steps`` DDIM steps (DDIM-eta 0) under ``theta``, prompts taken in turn.

    ``batch_size`` of them are sampled at once, which changes their rounding only. Of several ``processes`` each samples
    its share of the batches, and all get all of them.
    """
    cond, empty = model.encode_prompts(list(prompts)), model.unconditional()
    stride = model.schedule.timesteps / steps
    # Drawn whole by every process: a path's noise does not depend on who samples it.
    starts = [
        (torch.randn((size, *model.latent_shape), generator=generator), torch.rand(size, generator=generator))
        for size in (min(DRAWN_TOGETHER, count - first) for first in range(0, count, DRAWN_TOGETHER))
    ]
    noise, offsets = (torch.cat(drawn) for drawn in zip(*starts, strict=True))

    def batch(number: int) -> dict[str, Tensor]:
        first = number * batch_size
        x_t, offset = noise[first : first + batch_size].to(model.device), offsets[first : first + batch_size]
        size = len(x_t)
        rows: dict[str, list[Tensor]] = {name: [] for name in ("x_t", "t", "prompt_of", "unconditional", "conditional")}
        prompt_of = torch.arange(first, first + size) % len(prompts)
        for k in reversed(range(steps)):
            t = ((k + offset) * stride).long().to(model.device)
            t_next = ((k - 1 + offset) * stride).floor().long().to(model.device)
            both = Conditioning.cat([empty.expand(size), cond[prompt_of]])
            answers = teachers_answer(model.predict, theta, x_t.repeat(2, 1, 1, 1), t.repeat(2), both)
            unconditional, conditional = answers.chunk(2)
            for name, value in zip(rows, (x_t, t, prompt_of, unconditional, conditional), strict=True):
                rows[name].append(value)
            output = guided(unconditional, conditional, guidance_scale)
            x_t = model.schedule.ddim_step(x_t, output, t, t_next)
        if progress is not None:
            progress(first + size, count)
        return {name: torch.cat(values) for name, values in rows.items()}

    batches = processes.each(-(-count // batch_size), batch, together=are_pieces(theta.values()))
    if not all(bool(rows["x_t"].isfinite().all() and rows["conditional"].isfinite().all()) for rows in batches):
        raise RunError(NOT_FINITE)
    order = _order(count, steps, batch_size)
    found = {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}
    if not torch.equal(order, torch.arange(len(order))):
        found = {name: rows[order.to(rows.device)] for name, rows in found.items()}
    return TrajectoryBank(cond=cond, **found)


def _order(count: int, steps: int, batch_size: int) -> Tensor:
    """Where in rows that are batch by batch, each step by step, those lie that :data:`DRAWN_TOGETHER` would give."""
    paths = [torch.arange(first, min(first + batch_size, count)).repeat(steps) for first in range(0, count, batch_size)]
    taken = [torch.arange(steps).repeat_interleave(len(rows) // steps) for rows in paths]
    path, step = torch.cat(paths), torch.cat(taken)
    return ((path // DRAWN_TOGETHER * steps + step) * DRAWN_TOGETHER + path % DRAWN_TOGETHER).argsort()


def frozen_teachers_bank(task: ErasureTask) -> TrajectoryBank:
    """Paths of theta* for every prompt to forget, sampled once and kept in the task's shared folder, or its cache."""
    file = _bank_file(task)
    if file is not None and task.processes.on_main(file.exists):
        return TrajectoryBank.of_tensors(load_kept(file)[0], task.model.device)
    bank = sample_for(task, task.model.parameters(), task.prompts.forget, step_generator(task.seed, 0, "bank"))
    if file is not None and task.processes.main:
        save_tensors(file, bank.tensors())  # Whole at once: another run may be writing the same file.
    return bank


def _bank_file(task: ErasureTask) -> Path | None:
    if task.shared is None:
        return None if task.cache is None else task.cache / "bank.safetensors"
    facts = {name: getattr(task.settings, name) for name in BANK_SETTINGS}
    model = task.model
    facts |= {"weights": model.fingerprint(), "prompts": task.prompts.forget, "seed": task.seed}
    # Of the noise levels six digits: the last ones may be another machine's.
    levels = model.schedule.alpha_bar.double().cpu().numpy().round(6).tobytes()
    facts |= {
        "noise levels": hashlib.sha256(levels).hexdigest(), "predicts": model.schedule.prediction_type,
        "latent": list(model.latent_shape),
        "empty prompt is zeros": bool(model.pipeline.config.get("force_zeros_for_empty_prompt", False)),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return task.shared / f"bank-{key}.safetensors"


class PathRows(NamedTuple):
    """R rows of sampling paths, without answers."""

    x_t: Tensor
    """(R, C, h, w)."""
    t: Tensor
    """(R,) int64."""
    prompt_of: Tensor
    """(R,) which of the prompts."""


class MovingLatents:
    """Latents on the paths of a model that moves: sampled afresh now and then, and part of a run's state.

    The first are sampled, under ``theta``, when they are first wanted: a resumed run brings its own.
    """

    def __init__(self, task: ErasureTask, prompts: Sequence[str], theta: Params) -> None:
        self._task, self._prompts = task, prompts
        self._start: Params | None = theta

    def rows(self) -> PathRows:
        """The paths' latents, sampled now if they never were."""
        if self._start is not None:
            self.sample(self._start, 0)
        return self._rows

    def sample(self, theta: Params, step: int) -> None:
        """New paths under ``theta``, which ``step`` outer steps have led to."""
        bank = sample_for(self._task, theta, self._prompts, step_generator(self._task.seed, step, "bank"))
        self._rows, self._start = PathRows(bank.x_t, bank.t, bank.prompt_of), None

    def follow(self, theta: Params, step: int, every: int) -> None:
        """New paths every ``every`` steps, but not after the last."""
        if step % every == 0 and step < self._task.settings.steps:
            self.sample(theta, step)

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` wants back."""
        return self.rows()._asdict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        device = self._task.model.device
        self._rows = PathRows(state["x_t"].to(device), state["t"].to(device), state["prompt_of"])
        self._start = None


def sample_for(task: ErasureTask, theta: Params, prompts: Sequence[str], generator: torch.Generator) -> TrajectoryBank:
    """As many paths under ``theta``, as long and as strongly guided, as the task's settings say.

    And at least one for each concept, which have their prompts in turn.
    """
    settings, progress = task.settings, task.progress
    return sample_trajectories(
        task.model,
        in_precision(theta, settings.teacher_precision),
        prompts,
        count=max(settings.bank_trajectories, len(task.prompts.of_concept)),
        steps=settings.bank_steps,
        guidance_scale=settings.bank_guidance,
        generator=generator,
        batch_size=pictures_at_once(task.model.pipeline, settings.picture_batch),
        progress=labelled(progress, "sampling trajectories"),
        processes=task.processes,
    )
