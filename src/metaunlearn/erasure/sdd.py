"""SDD, safe self-distillation (Kim et al., 2023): the student learns to say for the concept what it says for nothing.

L_SDD(theta) = E || eps_theta(x_t, c_s) - sg(eps_theta(x_t, ∅)) ||^2 with the *student's own* unconditional prediction,
held constant (paper, section 3.2). The teacher is the exponential moving average of the student; x_t lies on its
sampling paths, and it is what is saved in the end.

The public code samples a path at every step. Here a bank of the teacher's paths serves ``bank_refresh`` steps and is
then sampled afresh: at decay d the teacher covers 1 - d^k of its distance to a resting student in k steps, 9.5 % in 100
steps at 0.999. A row's latent and timestep belong together; the public code pairs 1 step in 50 with a finished latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.data.concepts import ConceptPrompts
from metaunlearn.erasure.interface import ErasureTask, ForgetBatch
from metaunlearn.erasure.trajectories import MovingLatents
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, moved_average, subset
from metaunlearn.settings import Settings
from metaunlearn.shards import piece


class Sdd(Settings):
    """``sdd``."""

    subset: str = "x"
    """Which parameters are trained."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """d: how much of the teacher stays at each step; 1 - d of the student comes in."""
    bank_refresh: int = Field(default=100, gt=0)
    """Steps between two samplings of the teacher's paths."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """The parameters of ``subset``."""
        return subset(model.parameter_names, self.subset)

    def begin(self, task: ErasureTask) -> SddForgetLoss:
        """The teacher starts as theta*."""
        return SddForgetLoss(task, self)


def joined_prompts(prompts: ConceptPrompts) -> list[str]:
    """All concepts in one prompt, joined by ", ", once for each way to say them."""
    ways = max(map(len, prompts.of_concept))
    return [", ".join(texts[way % len(texts)] for texts in prompts.of_concept) for way in range(ways)]


class SddForgetLoss:
    """The teacher, its paths, and the student's targets."""

    def __init__(self, task: ErasureTask, options: Sdd) -> None:
        self.task, self.options = task, options
        start = task.model.parameters()
        # The average of what never moves is what it was: only phi needs one.
        self.average: Params = {name: start[name] for name in sorted(options.trained(task.model))}
        self.asked = task.model.encode_prompts(task.prompts.forget)
        """P rows: what the student is asked, in turn."""
        self.empty = task.model.unconditional()
        """One row."""
        self.latents = MovingLatents(task, joined_prompts(task.prompts), start)

    def batch(self, theta: Params, step: int, size: int, generator: torch.Generator) -> ForgetBatch:
        """``size`` rows of the bank; concepts in turn; the target is sg(eps_theta(x_t, ∅)) of the student."""
        paths = self.latents.rows()
        rows = torch.randint(len(paths.t), (size,), generator=generator)
        x_t, t = paths.x_t[rows], paths.t[rows]
        with torch.no_grad():  # The stop-gradient: the empty prompt's prediction is the target, it must not move.
            target = self.task.model.predict(theta, x_t, t, self.empty.expand(size))
        turn = (step * size + torch.arange(size)) % len(self.asked)
        return ForgetBatch(x_t=x_t, t=t, cond=self.asked[turn], target=target)

    def after_step(self, theta: Params, step: int) -> None:
        """The teacher follows; every ``bank_refresh`` steps it samples new paths."""
        self.average = moved_average(self.average, theta, self.options.ema_decay)
        self.latents.follow(theta | self.average, step, self.options.bank_refresh)

    def result(self, theta: Params) -> Params:
        """The teacher."""
        return theta | self.average

    def state(self) -> dict[str, Tensor]:
        """The teacher and its paths."""
        return self.latents.state() | {f"average.{name}": p for name, p in self.average.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back the teacher and its paths."""
        self.latents.restore(state)
        self.average = {name: piece(state[f"average.{name}"], p) for name, p in self.average.items()}
