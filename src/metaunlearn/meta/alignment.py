"""Weights of the retained pictures by Eq. 4: who is harmed most by unlearning is held most.

Unlearning raises L_DM on the concept. To first order that raises it on retained pictures by the inner product of both
gradients, the orthogonal term of Eq. 4. So for every retained prompt p, at theta* and over the parameters phi that the
method trains,

    c_p = cosine of grad L_DM(theta*; p's pictures) and grad L_DM(theta*; D_FT)
    w_p = 1/2 + max(c_p, 0) / (2 mean c),      mean c: of max(c, 0) over pictures, related and unrelated ones half each

Then the mean weight in a batch, half of either kind, is 1: lambda keeps its meaning. Nothing weighs less than a half,
for what does not suffer now may do so later. Where no cosine is positive, all weigh 1.

Each gradient is taken on ``DRAWS`` noised latents, one timestep from each of as many strata, and every prompt and the
concept have the same noise and timesteps, so that what differs is the pictures.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaunlearn.checkpoint import load_kept, save_tensors, step_generator
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.diffusion import denoising_loss_of, part
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.parameters import Params, dot, mean_of, norm, value_and_gradient

DRAWS = 16
"""Noised latents behind each gradient."""

KINDS = ("related", "unrelated")


class Aligned(NamedTuple):
    """The data with weights, and what ``log.jsonl`` says of them."""

    data: ErasureData
    report: dict[str, Any]
    """JSON values: of every retained prompt its cosine and its weight."""


def aligned(task: ErasureTask, data: ErasureData, trained: Collection[str]) -> Aligned:
    """``data`` with the weights above; the task's model must still be at theta*.

    A resumed run takes the cosines from the task's cache.
    """
    cosines = _cached(task, data, trained)
    of_picture = [cosines[kind][getattr(data, kind).prompt_of] for kind in KINDS]
    scale = mean_positive(*of_picture)
    sets, report = {}, {}
    for kind in KINDS:
        kept: LatentSet = getattr(data, kind)
        weights = weight(cosines[kind], scale)
        sets[kind] = replace(kept, weights=weights[kept.prompt_of].float().to(kept.mean.device))
        report[kind] = [
            {"prompt": text, "cosine": c, "weight": w}
            for text, c, w in zip(kept.texts, cosines[kind].tolist(), weights.tolist(), strict=True)
        ]
    return Aligned(replace(data, **sets), {"retain_weighting": report})


def mean_positive(related: Tensor, unrelated: Tensor) -> float:
    """mean c, of the cosines of either kind's pictures."""
    return float(torch.stack([cosines.clamp(min=0).mean() for cosines in (related, unrelated)]).mean())


def weight(cosines: Tensor, scale: float) -> Tensor:
    """w_p of c_p; ``scale`` is mean c."""
    return 0.5 + cosines.clamp(min=0) / (2 * scale) if scale > 0 else torch.ones_like(cosines)


def _cached(task: ErasureTask, data: ErasureData, trained: Collection[str]) -> dict[str, Tensor]:
    file = None if task.cache is None else task.cache / "alignment.safetensors"
    if file is not None and task.processes.on_main(file.exists):
        return load_kept(file)[0]
    cosines = prompt_cosines(task, data, trained)
    if file is not None and task.processes.main:
        save_tensors(file, cosines)
    return cosines


def prompt_cosines(task: ErasureTask, data: ErasureData, trained: Collection[str]) -> dict[str, Tensor]:
    """c_p of every prompt of either kind, float64 on the CPU. Several processes share the prompts."""
    theta = task.model.parameters()
    concept = _gradient(task, theta, data.forget, torch.arange(len(data.forget)), trained)
    length = norm(concept)
    prompts = [(kind, prompt) for kind in KINDS for prompt in range(len(getattr(data, kind).cond))]

    def cosine(index: int) -> dict[str, Tensor]:
        kind, prompt = prompts[index]
        kept: LatentSet = replace(getattr(data, kind), empty=None)  # Each prompt as it is, none dropped.
        own = (kept.prompt_of == prompt).nonzero().flatten()
        gradient = _gradient(task, theta, kept, own, trained)
        sizes = length * norm(gradient)
        if task.progress is not None:
            task.progress("weighing retained prompts", index + 1, len(prompts))
        return {"cosine": torch.tensor(dot(concept, gradient) / sizes if sizes else 0.0, dtype=torch.float64)}

    found = [answer["cosine"] for answer in task.processes.each(len(prompts), cosine)]
    return {kind: torch.stack([c for c, (of, _) in zip(found, prompts, strict=True) if of == kind]) for kind in KINDS}


def _gradient(task: ErasureTask, theta: Params, pictures: LatentSet, rows: Tensor, trained: Collection[str]) -> Params:
    """grad L_DM(theta; these rows) over ``trained``, on ``DRAWS`` latents; few rows come several times."""
    spread = rows[torch.arange(DRAWS) * len(rows) // DRAWS]
    batch = pictures.batch(spread, step_generator(task.seed, 0, "alignment"))
    size = max(n for n in range(1, DRAWS + 1) if DRAWS % n == 0 and n <= task.settings.batch_size)
    model = task.model.in_precision(task.settings.precision)
    losses = [denoising_loss_of(model, part(batch, first, first + size)) for first in range(0, DRAWS, size)]
    return value_and_gradient(mean_of(losses), theta, trained).gradient
