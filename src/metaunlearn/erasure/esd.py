"""ESD, Erased Stable Diffusion (Gandikota et al., ICCV 2023): steer the concept's prediction away from the concept.

Two versions by the same authors. ``esd-SUBSET-ETA`` is the paper's, ``esd-2025`` their later code. Their etas differ:
the paper's target starts at the empty prompt's prediction, the later one at the concept's, so the paper's eta 1 is the
later eta 2.

Both train on latents of the frozen teacher, sampled once (:mod:`~metaunlearn.erasure.trajectories`), as the
meta-unlearning paper has it. The 2023 code sampled them from the model being edited: ``latents = "edited"`` does that,
with paths that serve ``bank_refresh`` steps instead of one.

The paper's target starts at the empty prompt. With a guide (:mod:`~metaunlearn.erasure.guides`) it starts at the prompt
with the guide in the concept's place; eta 0 then is concept ablation (Kumari et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaunlearn.conditioning import Conditioning
from metaunlearn.data.concepts import ConceptPrompts, guide_prompts
from metaunlearn.erasure.guides import Guides
from metaunlearn.erasure.interface import ErasureTask, ForgetBatch, ForgetLoss
from metaunlearn.erasure.trajectories import MovingLatents, TrajectoryBank, frozen_teachers_bank
from metaunlearn.errors import UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.precision import in_precision, teachers_answer
from metaunlearn.parameters import SUBSETS, Params, subset
from metaunlearn.settings import Listed, Settings


def esd_target(start: Tensor, conditional: Tensor, eta: float) -> Tensor:
    """ESD Eq. 6: eps_0(s) - eta (eps_0(c) - eps_0(s)), all from the frozen teacher; shape of its arguments.

    The paper's s is the empty prompt; with a guide it is the guide's prompt.
    """
    return start - eta * (conditional - start)


def esd_2025_target(unconditional: Tensor, conditional: Tensor, erased_from: Tensor, eta: float) -> Tensor:
    """eps_0(c_from) - eta (eps_0(c) - eps_0(∅)), the authors' later code; c_from = c and eta 1 give eps_0(∅)."""
    return erased_from - eta * (conditional - unconditional)


class Esd(Settings):
    """``esd-SUBSET-ETA``: the name gives both."""

    subset: str
    """Which parameters are trained."""
    eta: float = Field(ge=0)
    """How far past the unconditional prediction the target lies."""
    guide: Annotated[tuple[str, ...], Listed] = ()
    """What is named in the concept's place in the prompt that the target starts at, one of these at a time; none: the
    empty prompt, as in the paper."""
    latents: Literal["frozen", "edited"] = "frozen"
    """Whose sampling paths the latents lie on: the frozen teacher's, or those of the model being edited."""
    bank_refresh: int = Field(default=100, gt=0)
    """Steps between two samplings of the edited model's paths."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """The subset of the name."""
        return subset(model.parameter_names, self.subset, said_by="method=..., --method esd-SUBSET-ETA")

    def check(self, model: TextToImageModel, prompts: ConceptPrompts) -> None:
        """Refuse a guide that cannot take the concept's place."""
        for guide in self.guide:
            guide_prompts(model.pipeline, prompts, guide)

    def begin(self, task: ErasureTask) -> ForgetLoss:
        """Sample the paths, or take the teacher's from the cache."""
        guides = Guides(task, self.guide) if self.guide else None
        if self.latents == "edited":
            return EditedLatentsForgetLoss(task, guides, self.eta, self.bank_refresh)
        bank = frozen_teachers_bank(task)
        start = bank.unconditional if guides is None else guides.predictions(task, bank)
        return BankedForgetLoss(bank, esd_target(start, bank.conditional, self.eta))


class Esd2025(Settings):
    """``esd-2025``: the concept is erased from itself (c_from = c), and norms are never trained.

    One rule for all models. For Stable Diffusion XL the authors' code differs in two things: its u and f leave out what
    is outside the blocks and the projections of time, and its empty prompt is the encoded one, where XL's own is zeros.
    """

    subset: Literal["x", "x-strict", "u", "f"] = "x"
    """Which Linear and Conv2d layers are trained; here u is everything outside cross-attention. The recipes' learning
    rates are those for x: outside it the authors take 1e-5 for Stable Diffusion XL."""
    eta: float = Field(default=2.0, ge=0)
    """How far the target lies from the concept's own prediction; 2 is eta 1 of esd-SUBSET-ETA."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """Parameters of Linear and Conv2d layers whose name the subset's rule holds."""
        layers = {name for name, part in model.unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
        chosen = RULES_2025[self.subset]([name for name in model.parameter_names if name.rpartition(".")[0] in layers])
        if not chosen:
            raise UserError(
                f"esd-2025 finds no layer of the subset {self.subset!r} in this model (subset, --set subset=...); "
                "choose 'f', all of them."
            )
        return frozenset(chosen)

    def begin(self, task: ErasureTask) -> BankedForgetLoss:
        """Sample the teacher's paths, or take them from the cache."""
        bank = frozen_teachers_bank(task)
        target = esd_2025_target(bank.unconditional, bank.conditional, bank.conditional, self.eta)
        return BankedForgetLoss(bank, target)


RULES_2025 = {name: SUBSETS[name] for name in ("x", "x-strict", "f")} | {
    "u": lambda names: {name for name in names if "attn2" not in name}
}
"""Which of the layers' parameters a subset holds."""


class BankedForgetLoss:
    """Rows of the frozen teacher's bank with their targets."""

    def __init__(self, bank: TrajectoryBank, target: Tensor) -> None:
        self.bank = bank
        self.target = target
        """(R, C, h, w)."""

    def batch(self, theta: Params, step: int, size: int, generator: torch.Generator) -> ForgetBatch:
        """``size`` rows, with replacement; theta has no part in it."""
        bank = self.bank
        rows = torch.randint(len(bank), (size,), generator=generator)
        return ForgetBatch(
            x_t=bank.x_t[rows],
            t=bank.t[rows],
            cond=bank.cond[bank.prompt_of[rows]],
            target=self.target[rows],
        )


class EditedLatentsForgetLoss:
    """Latents on the paths of the model being edited; the target there is still the frozen teacher's."""

    def __init__(self, task: ErasureTask, guides: Guides | None, eta: float, bank_refresh: int) -> None:
        self.model, self.guides, self.eta, self.bank_refresh = task.model, guides, eta, bank_refresh
        self.teacher = in_precision(task.model.parameters(), task.settings.teacher_precision)
        self.cond = task.model.encode_prompts(task.prompts.forget)
        """P rows."""
        self.empty = task.model.unconditional()
        """One row."""
        self.latents = MovingLatents(task, task.prompts.forget, self.teacher)

    @torch.no_grad()
    def batch(self, theta: Params, step: int, size: int, generator: torch.Generator) -> ForgetBatch:
        """``size`` rows; at each the teacher is asked for the concept, and for a guide or nothing."""
        paths = self.latents.rows()
        rows = torch.randint(len(paths.t), (size,), generator=generator)
        x_t, t, prompt_of = (column[rows] for column in paths)
        cond = self.cond[prompt_of]
        other = self.empty.expand(size) if self.guides is None else self.guides.draw(prompt_of, generator)
        both = Conditioning.cat([other, cond])
        answers = teachers_answer(self.model.predict, self.teacher, x_t.repeat(2, 1, 1, 1), t.repeat(2), both)
        start, conditional = answers.chunk(2)
        return ForgetBatch(x_t=x_t, t=t, cond=cond, target=esd_target(start, conditional, self.eta))

    def after_step(self, theta: Params, step: int) -> None:
        """New paths, now and then."""
        self.latents.follow(theta, step, self.bank_refresh)

    def result(self, theta: Params) -> Params:
        """Where Algorithm 1 ended."""
        return theta

    def state(self) -> dict[str, Tensor]:
        """The paths."""
        return self.latents.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back the paths."""
        self.latents.restore(state)
