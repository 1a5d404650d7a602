r"""IMMA (Zheng and Yeh, ECCV 2024): make an erased model a bad start for the concept's finetuning.

A bi-level problem: the attacker minimises L_FT, here L_DM on the concept's pictures, over the factors B and A of a LoRA
on top of theta, and the immunisation maximises over theta what the attacker has reached,

    max_theta  L_FT(theta + B* A*)      with      B*, A* = argmin_{B, A}  L_FT(theta + B A).

It is solved by turns, as in the authors' code: one AdamW step of the factors down, one AdamW step of theta up, each on
a batch of its own and clipped. The factors and their optimiser go on from turn to turn, and are no function of theta:
there is no way back through them. phi are the attention's queries, keys, values and outputs, the layers that the LoRA
is on.

The authors start from a model that was erased by another method, ESD-x-1 in the paper: ``base`` is that method, which
runs first, without the meta objective, by the recipe's own settings for it. MODEL's pictures are made before it.

Here ``inner_learning_rate``, ``inner_steps``, ``inner_optimizer``, ``inner_weight_decay`` and
``inner_max_gradient_norm`` are the LoRA's, and ``learning_rate`` is theta's. The authors keep nothing: that is
``retain_weight`` 0, and any other goes beyond them, as L_retain does for every method here. Their options to start the
LoRA afresh at each turn or to leave it out are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from metaunlearn.checkpoint import step_generator
from metaunlearn.config import EraseSettings
from metaunlearn.data.latents import ErasureData
from metaunlearn.diffusion import Batch, denoising_loss
from metaunlearn.erasure.interface import META_SETTINGS, DefenceGradient, ErasureTask
from metaunlearn.errors import UserError
from metaunlearn.lowrank import ATTENTION, check_targets, merged, new_factors, target_modules
from metaunlearn.meta.objective import attackers_rule
from metaunlearn.meta.optimizers import State
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Loss, Params, mean_of, scale, value_and_gradient
from metaunlearn.settings import Listed, Settings
from metaunlearn.unheard import OF_PATHS


class Imma(Settings):
    """``imma``."""

    unread: ClassVar[tuple[str, ...]] = (
        *META_SETTINGS, *OF_PATHS, "attackers", "inner_subset", "inner_store", "inner_eps_root", "meta_gradient",
    )  # fmt: skip

    base: str | None = "esd-x-1"
    """The method that erases first, plainly; none: MODEL is immunised as it is."""
    base_set: Annotated[tuple[str, ...], Listed] = ()
    """Settings of the base method over the recipe's, key=value; ``--set base_set=steps=200,learning_rate=1e-4``."""
    rank: int = Field(default=4, gt=0)
    """r, of the attacker's LoRA."""
    targets: Annotated[tuple[str, ...], Listed] = Field(default=ATTENTION, min_length=1)
    """Layers that the LoRA is on and that are immunised, by the end of their name."""

    def trained(self, model: TextToImageModel) -> frozenset[str]:
        """Weights and biases of the target layers."""
        theta = dict(model.unet.named_parameters())
        check_targets(theta, self.targets)
        layers = set(target_modules(theta, self.targets))
        return frozenset(name for name in model.parameter_names if name.rpartition(".")[0] in layers)

    def defend(self, task: ErasureTask, data: ErasureData) -> ImmaDefence:
        """B A is zero at the start."""
        if task.settings.attackers:
            raise UserError(
                "imma has one attacker, whose LoRA goes on from step to step, and the recipe has a mixture: move "
                "attackers from the recipe's [erase] to the tables [methods.NAME] of those that want it."
            )
        return ImmaDefence(task, self)

    def gradients(self, settings: EraseSettings) -> float:
        """The turns down and the one up."""
        return settings.inner_steps + settings.accumulation


class Lora(NamedTuple):
    """The attacker: never changed, only replaced."""

    factors: Params
    state: State
    """Of its optimiser."""
    steps: int
    """How many it has taken."""


class ImmaDefence:
    """The LoRA's steps down, then -L_FT at theta under it."""

    def __init__(self, task: ErasureTask, options: Imma) -> None:
        # All of its gradients are of first order.
        self.model, self.processes = task.model.in_precision(task.settings.precision), task.processes
        [self.attacker] = task.settings.simulated
        # Nothing is differentiated through these steps, so Adam needs nothing inside its root: torch's own.
        self.rule = attackers_rule(self.attacker, task.settings.model_copy(update={"inner_eps_root": 0.0}))
        self.trained = options.trained(task.model)
        theta = {name: p.detach() for name, p in task.model.unet.named_parameters()}
        factors = new_factors(theta, options.targets, options.rank, step_generator(task.seed, 0, "imma"))
        self.lora = self.next = Lora(factors, self.rule.start(factors), 0)
        """Where the LoRA is, and where the step that is being taken leads it."""

    def gradient(self, theta: Params, step: int, inner: Sequence[Batch], outer: Sequence[Batch]) -> DefenceGradient:
        """-grad L_FT(theta + B A), after the LoRA has gone down on ``inner``."""
        lora, values = self.lora, []
        fixed = {name: p.detach() for name, p in theta.items()}
        for batch in inner:
            value, lora = self._down(fixed, lora, batch)
            values.append(value)
        up = mean_of([self._loss_of_theta(lora.factors, batch) for batch in outer])
        value, gradient = value_and_gradient(self.processes.shared(up), theta, self.trained)
        self.next = lora
        *finetuning, concept = torch.stack([*values, value]).tolist()
        return DefenceGradient(scale(gradient, -1.0), {"loss_finetuning": finetuning, "loss_concept": concept})

    def _down(self, theta: Params, lora: Lora, batch: Batch) -> tuple[Tensor, Lora]:
        """L_FT, and the LoRA after one step of its optimiser."""

        def loss(factors: Params) -> Tensor:
            return denoising_loss(self.model, merged(theta, factors, 1.0), batch)

        value, gradient = value_and_gradient(self.processes.shared(loss), lora.factors)
        steps = lora.steps + 1
        factors, state = self.rule.step(lora.factors, lora.state, gradient, steps, self.attacker.learning_rate)
        return value, Lora(factors, state, steps)

    def _loss_of_theta(self, factors: Params, batch: Batch) -> Loss:
        return lambda theta: denoising_loss(self.model, merged(theta, factors, 1.0), batch)

    def after_step(self, theta: Params, step: int) -> None:
        """The LoRA is where the step led it."""
        self.lora = self.next

    def result(self, theta: Params) -> Params:
        """Where the outer loop ended: the LoRA is the attacker's."""
        return theta

    def state(self) -> dict[str, Tensor]:
        """The LoRA and its optimiser."""
        moments = {f"moment{i}.{name}": p for i, part in enumerate(self.lora.state) for name, p in part.items()}
        factors = {f"factor.{name}": p for name, p in self.lora.factors.items()}
        return {**factors, **moments, "steps": torch.tensor(self.lora.steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back the LoRA and its optimiser."""

        def like(prefix: str, given: Params) -> Params:
            return {name: state[f"{prefix}.{name}"].to(p.device) for name, p in given.items()}

        self.lora = self.next = Lora(
            like("factor", self.lora.factors),
            tuple(like(f"moment{i}", part) for i, part in enumerate(self.lora.state)),
            int(state["steps"]),
        )
