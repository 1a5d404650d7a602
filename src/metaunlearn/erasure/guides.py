"""Guides: what stands in a concept's place in the prompts to forget, so that what the prompts share is left alone.

ESD's target starts at the empty prompt, so a prompt that names a style and a thing is led away from both, and the thing
suffers with the style. Starting at the same prompt with another style in it leads away from the style alone. UCE has
the same idea and the same word for it; concept ablation (Kumari et al., ICCV 2023) calls it the anchor concept.

Shapes: G guides, P prompts to forget, R rows of a bank, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaunlearn.checkpoint import step_generator
from metaunlearn.conditioning import Conditioning
from metaunlearn.data.concepts import guide_prompts
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.trajectories import NOT_FINITE, TrajectoryBank
from metaunlearn.errors import RunError
from metaunlearn.generation import pictures_at_once
from metaunlearn.models.precision import in_precision, teachers_answer

ROWS_AT_ONCE = 64
"""Rows that the teacher is asked for together, if ``picture_batch`` allows so many."""


class Guides:
    """The prompts to forget, encoded, with each of ``texts`` in the concept's place."""

    def __init__(self, task: ErasureTask, texts: Sequence[str]) -> None:
        self.count = len(texts)
        prompts = [guide_prompts(task.model.pipeline, task.prompts, text) for text in texts]
        self.cond = task.model.encode_prompts([prompt for of_guide in prompts for prompt in of_guide])
        """G·P rows, guide by guide."""

    def draw(self, prompt_of: Tensor, generator: torch.Generator) -> Conditioning:
        """For each row of ``prompt_of``, (B,) numbers of prompts to forget, that prompt with one of the guides in it.

        A guide is drawn for each row, so in the mean over rows all of them count alike.
        """
        guide_of = torch.randint(self.count, (len(prompt_of),), generator=generator)
        return self.cond[guide_of * (len(self.cond) // self.count) + prompt_of]

    @torch.no_grad()
    def predictions(self, task: ErasureTask, bank: TrajectoryBank) -> Tensor:
        """What the frozen teacher predicts at each of the bank's rows for a prompt with a guide in it, (R, C, h, w).

        It is asked for at most as many at once as when the paths were sampled: two answers for each of them.
        """
        rows_at_once = min(ROWS_AT_ONCE, 2 * pictures_at_once(task.model.pipeline, task.settings.picture_batch))
        teacher = in_precision(task.model.parameters(), task.settings.teacher_precision)
        generator = step_generator(task.seed, 0, "guides")
        answers = []
        for first in range(0, len(bank), rows_at_once):
            rows = slice(first, first + rows_at_once)
            cond = self.draw(bank.prompt_of[rows], generator)
            answers.append(teachers_answer(task.model.predict, teacher, bank.x_t[rows], bank.t[rows], cond))
            if task.progress is not None:
                task.progress("asking for the guides", min(first + rows_at_once, len(bank)), len(bank))
        found = torch.cat(answers)
        if not found.isfinite().all():
            raise RunError(NOT_FINITE)
        return found
