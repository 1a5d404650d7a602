"""Costs by measurement: the model's own gradients of L_DM, and the arithmetic between them.

Every pass that a step takes (``passes.py``) is run with the model's own parameters on random latents, the empty prompt
and random targets, of as many pictures as it has in a step. The arithmetic between them (the attacker's steps, the way
back through them, the outer optimiser) is run as it is, with losses that cost nothing: their gradients are there
already. A step's time is then the sum; a defence's own arithmetic is not in it.

Its peak memory is what lasts, by count, and the peak of one step's work in the order of a step: the gradients at theta,
the meta-gradient, a diagnosis, the outer optimiser. ``auto`` checks itself by a double backward, so that counts, too;
an exact meta-gradient for a first-order run's diagnosis (``diagnostics_exact``) does not.

No parameter of the model changes, and no random number is drawn from the global state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.doctor.meter import Meter
from metaunlearn.doctor.passes import Pass, Passes
from metaunlearn.meta.diagnostics import compared
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    GradientDifference,
    MetaGradient,
    MetaGradientMode,
    MetaProblem,
    double_backward_product,
)
from metaunlearn.meta.inner import attacked
from metaunlearn.meta.modes import difference_products, mode_called
from metaunlearn.meta.objective import simulated_finetuning
from metaunlearn.meta.outer import clipped_step, outer_optimizer
from metaunlearn.meta.persistent import PersistentAttack
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.memory import checkpointing
from metaunlearn.models.precision import float32_products, in_precision, products_in, teachers_answer
from metaunlearn.parameters import Loss, Params, add, moved_average, norm, scale, value_and_gradient


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found."""

    seconds: dict[Pass, float]
    arithmetic: float
    """Seconds a step beside the passes."""
    peak: int | None
    """Bytes of a step above what lasts; None: not measured here."""

    def step(self, passes: Passes) -> float:
        """Seconds of an outer step of ``passes``."""
        return sum(count * self.seconds[one] for one, count in passes.items()) + self.arithmetic


def measure(
    model: TextToImageModel,
    settings: EraseSettings,
    passes: Passes,
    trained: Collection[str],
    meter: Meter,
    *,
    meta: bool,
    averages: int = 0,
) -> Measured:
    """Run each pass and the arithmetic; ``averages`` are the moving averages of what is ``trained``."""
    bench = Bench(model, settings, trained, averages, meta=meta)
    with checkpointing(model.unet, settings.gradient_checkpointing):
        seconds = {one: meter.seconds(bench.run_of(one)) for one in passes}
        arithmetic = meter.seconds(bench.outer_update())
        if meta:
            mode = _modes(settings)[0]
            each = [
                meter.seconds(partial(bench.meta_gradient, attacker, mode, _Free)) for attacker in settings.simulated
            ]
            arithmetic += sum(each) / len(each)
        peak = _peak(bench, passes, meter, meta=meta) if meter.sees_memory else None
    return Measured(seconds=seconds, arithmetic=arithmetic, peak=peak)


def _peak(bench: Bench, passes: Passes, meter: Meter, *, meta: bool) -> int:
    update = bench.outer_update()
    update()  # From now on its moments are there.
    if not meta:
        return meter.peak(partial(bench.rehearse, passes, update, None))
    return max(
        meter.peak(partial(bench.rehearse, passes, update, partial(bench.meta_gradient, attacker, mode, bench.real)))
        for attacker in dict.fromkeys(bench.settings.simulated)
        for mode in _modes(bench.settings)
    )


class Turn(NamedTuple):
    """A meta-gradient; and of a persistent attacker where it started, and where it goes on."""

    found: MetaGradient
    start: Params | None = None
    goes_on: PersistentAttack | None = None


class Bench:
    """What the passes and the arithmetic need, made once."""

    def __init__(
        self, model: TextToImageModel, settings: EraseSettings, trained: Collection[str], averages: int, *, meta: bool
    ) -> None:
        self.model, self.settings, self.trained, self.averages = model, settings, sorted(trained), averages
        self.meta = meta
        self.theta: Params = dict(model.unet.named_parameters())
        self.teacher = in_precision(self.theta, settings.teacher_precision)
        self.tuned = attacked(model.parameter_names, settings.inner_subset, trained)

    @cached_property
    def attack(self) -> PersistentAttack | None:
        """In the middle of its way; its Delta is one of the things that last."""
        if self.settings.inner_horizon is None:
            return None
        displacement = {name: torch.zeros_like(self.theta[name]) for name in self.tuned}
        return PersistentAttack(horizon=self.settings.inner_horizon, displacement=displacement)

    def run_of(self, one: Pass) -> Callable[[], object]:
        """One pass, ready to be run in the products that a step takes it in."""
        call = self._call(one)

        def run() -> object:
            with self._products(one):
                return call()

        return run

    def _products(self, one: Pass) -> AbstractContextManager[None]:
        """Those of an exact mode, which sets its own, or those that all of a step is in."""
        if self.meta and not one.first_order and one.kind in ("tuned", "all", "product"):
            mode = _modes(self.settings)[0]
            return float32_products(mode.precision if isinstance(mode, GradientDifference) else "ieee")
        return products_in(self.settings.precision)

    def _call(self, one: Pass) -> Callable[[], object]:
        model = self._model_of(one)
        names = {"trained": self.trained, "tuned": self.tuned}.get(one.kind)
        loss = _denoising(model, one.pictures)
        match one.kind:
            case "forward":
                return torch.no_grad()(partial(loss, self.theta))
            case "teacher":
                return torch.no_grad()(partial(_denoising(_Teacher(model), one.pictures), self.teacher))
            case "product":
                direction = {name: self.theta[name].detach() for name in self.tuned}
                return partial(double_backward_product, loss, self.theta, direction)
            case _:
                return partial(value_and_gradient, loss, self.theta, names)

    def _model_of(self, one: Pass) -> TextToImageModel:
        return self.model.in_precision(self.settings.precision) if one.first_order else self.model

    def real(self, first: Pass, later: Pass) -> Loss:
        """L_DM."""
        return _denoising(self._model_of(first), first.pictures)

    def meta_gradient(self, attacker: Attacker, mode: MetaGradientMode, loss: LossOf) -> Turn:
        """The meta-gradient with ``loss`` in place of L_DM, and what stays beside it until the step is over."""
        s = self.settings
        first_order = s.meta_gradient == "first-order"
        tuned, ends = Pass("tuned", s.batch_size, first_order), Pass("all", 2 * s.batch_size, first_order)
        product = Pass("product" if isinstance(mode, DoubleBackward) else "all", s.batch_size, first_order)
        problem = MetaProblem(
            inner_losses=[loss(tuned, product) for _ in range(attacker.steps)],
            inner=simulated_finetuning(self.model.parameter_names, attacker, s, self.trained),
            outer=loss(ends, ends),
            along_path=s.meta_loss == "path",
            with_first_order=not first_order and s.diagnostics_every > 0,
            keep_final=s.diagnostics_every > 0 or self.attack is not None,
        )
        if self.attack is None:
            return Turn(mode(problem, self.theta))
        start = self.attack.start(self.theta)
        found = mode(problem, start)
        return Turn(found, start, self.attack.after(self.theta, found.theta_final, problem.inner, attacker.steps))

    def rehearse(
        self, passes: Passes, update: Callable[[], object], meta_gradient: Callable[[], object] | None
    ) -> None:
        """What is alive at once in an outer step: the meta-gradient, gradients at theta, a diagnosis; the optimiser."""
        with products_in(self.settings.precision):
            held = [None if meta_gradient is None else meta_gradient()]
        gradient = None
        for one in passes:
            if one.kind == "trained" or (meta_gradient is None and one.kind == "all"):
                gradient = self.run_of(one)()
        held.append(gradient)
        if self.settings.diagnostics_every:
            with float32_products("ieee"):
                held += [self._call(Pass("all", self.settings.batch_size))() for _ in range(2)]
            if meta_gradient is not None and self.settings.meta_gradient != "first-order":
                phi = {name: self.theta[name].detach() for name in self.trained}
                direct = scale(phi, 0.5)
                compared(add(phi, direct), add(phi, direct))
        del held
        update()

    def outer_update(self) -> Callable[[], object]:
        """Adding up, clipping and stepping what is trained, and its moving averages; ready to be run."""
        moved = {name: self.theta[name].detach().clone() for name in self.trained}
        gradient = {name: p.detach() for name, p in moved.items()}
        optimizer = outer_optimizer(list(moved.values()), self.settings)

        def update() -> None:
            norm(gradient)
            summed = {name: g + self.settings.gamma2 * g for name, g in gradient.items()}
            clipped_step(optimizer, moved, summed, self.settings.max_gradient_norm)
            del summed
            for _ in range(self.averages):
                moved_average(gradient, moved, 0.9)

        return update


def _modes(settings: EraseSettings) -> list[MetaGradientMode]:
    """What a step takes, then what else a run does: ``auto`` is the difference, checked by a double backward."""
    products = difference_products(settings)
    if settings.meta_gradient == "auto":
        return [GradientDifference(precision=products), DoubleBackward()]
    return [mode_called(settings.meta_gradient, products)]


class _Teacher:
    """A model whose parameters may be in half precision."""

    def __init__(self, model: TextToImageModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return teachers_answer(self._model.predict, theta, x_t, t, cond)


def _denoising(model: Any, pictures: int) -> Loss:
    """L_DM on random latents with random noise, under the empty prompt."""
    g = torch.Generator().manual_seed(0)
    shape = (pictures, *model.latent_shape)
    x_t, target = (torch.randn(shape, generator=g).to(model.device) for _ in range(2))
    t = torch.randint(model.schedule.timesteps, (pictures,), generator=g).to(model.device)
    cond = model.unconditional().expand(pictures)
    return lambda theta: (model.predict(theta, x_t, t, cond) - target).square().mean()


LossOf = Callable[[Pass, Pass], Loss]
"""(pass of its first call, pass of each later one) -> a loss."""


class _Free:
    """A loss that costs nothing: its gradient, theta itself, is there already."""

    def __init__(self, first: Pass, later: Pass) -> None:
        pass

    def __call__(self, theta: Params) -> Tensor:
        value: Tensor = _GradientIsTheta.apply(*theta.values())
        return value


class _GradientIsTheta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *theta: Tensor) -> Tensor:
        ctx.theta = theta
        return theta[0].new_ones(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(p.detach() if needed else None for p, needed in zip(ctx.theta, ctx.needs_input_grad, strict=True))
