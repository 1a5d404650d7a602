r"""ResAlign (Li et al., NeurIPS 2025): unlearn so that the concept's loss is no lower after finetuning than before.

With L = -L_DM on the concept's pictures (the authors' ``ga``; they also have ESD's loss), w the weight of what is kept
and theta_FT(theta) what finetuning from theta leads to, the outer objective is

    L(theta) + r [L(theta_FT) - L(theta)] + w L_retain(theta),      L_retain the distance to theta*'s own answers

Finetuning is taken for a proximal point, so that its gradient needs no way back through the steps: 5 fixed-point
iterations (:mod:`~metaunlearn.meta.implicit`), with the Hessian of L_FT on a batch of its own. Each outer step averages
over 3 finetuning configurations, drawn from a list of optimisers, learning rates and lengths (the authors have 15).

Here w is ``retain_weight`` and L_retain is ``retain_loss``, ``distillation`` being theirs; the list is ``attackers``,
each of which starts afresh, on ``inner_subset``. Otherwise than in their code

- phi itself is trained, a subset of the denoiser, where they train a LoRA of rank 4 that is merged in the end, and so
  the finetuning moves theta rather than that LoRA;
- rho is a setting; theirs is 1, in the space of the LoRA's factors;
- whether the iteration contracts is asked of the whole of u, where they average over its tensors; and a long gradient
  is clipped (``max_gradient_norm``) where they solve the system again with half the damping;
- r and w are constant, where they let both rise along a sigmoid;
- DreamBooth is not among the configurations.

Where the iteration contracts at no damping, that configuration's term L(theta_FT) is left out of the step, as in
theirs. The larger rho, the nearer the gradient through finetuning is to the first-order one: log.jsonl has its distance
from there, ``beyond_first_order``, relative to that one's norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from metaunlearn.checkpoint import step_generator
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.diffusion import Batch, denoising_loss_of, part
from metaunlearn.erasure.interface import META_SETTINGS, DefenceGradient, ErasureTask
from metaunlearn.meta.implicit import Implicit, implicit_gradient
from metaunlearn.meta.inner import InnerLoop, attacked
from metaunlearn.meta.modes import product_named
from metaunlearn.meta.objective import attackers_rule
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Loss, Params, add, mean_of, norm, scale, subset, value_and_gradient
from metaunlearn.settings import Listed, Settings
from metaunlearn.unheard import OF_PATHS

PRODUCT_GRADIENTS = 2
"""Gradients in one Hessian-vector product by a difference."""


class ResAlign(Settings):
    """``resalign``."""

    unread: ClassVar[tuple[str, ...]] = (*META_SETTINGS, *OF_PATHS, "inner_store")

    subset: str = "f"
    """Which parameters are trained."""
    resilience: float = Field(default=0.8, ge=0)
    """r, weight of the loss after finetuning less that before it."""
    proximity: float = Field(default=1.0, gt=0)
    """rho: the finetuning's implied pull back to where it began. Lower: the gradient through it is further from the
    first-order one, and its iteration may not contract."""
    iterations: int = Field(default=5, gt=0)
    """K, fixed-point iterations; 1 is the first-order gradient."""
    sampled: int = Field(default=3, gt=0)
    """Finetuning configurations in each step, drawn from attackers without replacement; at most all of them."""
    finetuned_on: Annotated[tuple[Literal["forget", "related", "unrelated"], ...], Listed] = Field(
        default=("forget",), min_length=1
    )
    """Whose pictures the simulated finetuning sees, one of these at a time: unrelated is that of an honest user."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """The parameters of ``subset``."""
        return subset(model.parameter_names, self.subset)

    def defend(self, task: ErasureTask, data: ErasureData) -> ResAlignDefence:
        """Nothing to get ready."""
        return ResAlignDefence(task, data, self)

    def gradients(self, settings: EraseSettings) -> float:
        """Before finetuning; and for each configuration its steps, what comes after, and the products."""
        steps = mean(attacker.steps for attacker in settings.simulated)
        products = 0 if settings.meta_gradient == "first-order" else PRODUCT_GRADIENTS * (self.iterations - 1)
        count = min(self.sampled, len(settings.simulated))
        return settings.accumulation + count * (steps + settings.accumulation + products)


class ResAlignDefence:
    """(1 - r) L(theta) + r L(theta_FT), the mean over some finetuning configurations."""

    def __init__(self, task: ErasureTask, data: ErasureData, options: ResAlign) -> None:
        self.task, self.data, self.options = task, data, options
        self.first_order_model = task.model.in_precision(task.settings.precision)
        exact = task.settings.meta_gradient != "first-order"
        self.finetuned_model = task.model if exact else self.first_order_model
        """Of the passes that the gradient through finetuning is made of."""
        self.tuned = attacked(task.model.parameter_names, task.settings.inner_subset, options.trained(task.model))

    def gradient(self, theta: Params, step: int, inner: Sequence[Batch], outer: Sequence[Batch]) -> DefenceGradient:
        """``inner`` is of one attacker, and not used: those of this step draw their own."""
        r, generator = self.options.resilience, step_generator(self.task.seed, step, "resalign")
        before, at_theta = value_and_gradient(self._harmful(self.first_order_model, outer), theta)
        harmful = self._harmful(self.finetuned_model, outer)
        gradient = scale(at_theta, -(1 - r))
        after, finetuning, dampings, shifts = [], [], [], []
        configurations = self._configurations(generator)
        for attacker in configurations:
            *steps, last = self._finetuning_losses(attacker, generator)
            path = self._inner_loop(attacker).run(theta, steps, keep_path=False)
            theta_ft = path.thetas.pop()
            value, v = value_and_gradient(harmful, theta_ft)
            found = self._through(theta_ft, last, v)
            if found.gradient is not None:
                gradient = add(gradient, found.gradient, -r / len(configurations))
            after.append(value)
            finetuning.append(path.losses[-1])
            dampings.append(found.damping)
            shifts.append(None if found.gradient is None else _distance(found.gradient, v))
        *after_values, before_value = torch.stack([*after, before]).tolist()
        record = {
            "loss_concept": before_value,
            "loss_concept_finetuned": after_values,
            "loss_finetuning": torch.stack(finetuning).tolist(),
            "attackers": [attacker.model_dump() for attacker in configurations],
            "dampings": dampings,
            "beyond_first_order": shifts,
        }
        return DefenceGradient(gradient, record)

    def _configurations(self, generator: torch.Generator) -> list[Attacker]:
        """Some of the attackers, no two alike."""
        attackers = self.task.settings.simulated
        order = torch.randperm(len(attackers), generator=generator).tolist()
        return [attackers[index] for index in order[: self.options.sampled]]

    def _finetuning_losses(self, attacker: Attacker, generator: torch.Generator) -> list[Loss]:
        """L_FT on a batch for each of the attacker's steps, and on one more, for the Hessian."""
        roles, size = self.options.finetuned_on, self.task.settings.batch_size
        data: LatentSet = getattr(self.data, roles[int(torch.randint(len(roles), (), generator=generator))])
        rows = self.task.processes.own(size)
        batches = [
            data.draw(size, generator, stratified=self.task.settings.stratified) for _ in range(attacker.steps + 1)
        ]
        model = self.finetuned_model
        return [self._loss(denoising_loss_of(model, part(batch, rows.start, rows.stop))) for batch in batches]

    def _harmful(self, model: TextToImageModel, outer: Sequence[Batch]) -> Loss:
        return self._loss(mean_of([denoising_loss_of(model, batch) for batch in outer]))

    def _loss(self, own: Loss) -> Loss:
        return self.task.processes.shared(own)

    def _inner_loop(self, attacker: Attacker) -> InnerLoop:
        return InnerLoop(
            learning_rate=attacker.learning_rate,
            adapted=self.tuned,
            optimizer=attackers_rule(attacker, self.task.settings),
        )

    def _through(self, theta_ft: Params, last: Loss, v: Params) -> Implicit:
        """d L(theta_FT) / d theta from v; to first order v itself."""
        product = product_named(self.task.settings.meta_gradient, theta_ft)
        if product is None:
            return Implicit(v, 1.0)
        return implicit_gradient(
            v,
            partial(product, last, theta_ft),
            self.tuned,
            rho=self.options.proximity,
            iterations=self.options.iterations,
        )


def _distance(u: Params, v: Params) -> float:
    """||u - v|| / ||v||: 0 where nothing but the first-order gradient came of the iteration."""
    return norm(add(u, v, -1.0)) / (norm(v) or 1.0)
