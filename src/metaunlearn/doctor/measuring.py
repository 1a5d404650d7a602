"""Costs by measurement: the model's own gradients of L_DM, and the arithmetic between them.

Every pass that a step takes (``passes.py``) is run with the model's own parameters on random latents, the empty prompt
and random targets, of as many pictures as it has in a step. The arithmetic between them (the attacker's steps, the way
back through them, the outer optimiser) is run as it is, with losses that cost nothing: their gradients are there
already. A step's time is then the sum; a defence's own arithmetic is not in it.

Its peak memory is what lasts, by count, and the largest of: the gradient at theta; the meta-gradient, that is what its
arithmetic holds at each pass and what that pass needs beside it; the outer optimiser.

No parameter of the model changes, and no random number is drawn from the global state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.doctor.meter import Meter
from metaunlearn.doctor.passes import Pass, Passes
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradientMode,
    MetaProblem,
    double_backward_product,
)
from metaunlearn.meta.objective import simulated_finetuning
from metaunlearn.meta.outer import outer_optimizer
from metaunlearn.meta.train import laid_out_like
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.memory import checkpointing
from metaunlearn.models.precision import in_precision, teachers_answer
from metaunlearn.parameters import Loss, Params, moved_average, subset, value_and_gradient


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
    bench = _Bench(model, settings, trained, averages)
    wanted = dict.fromkeys([*passes, *(attackers_passes(settings) if meta else ()), *_diagnosis(settings)])
    with checkpointing(model.unet, settings.gradient_checkpointing):
        seconds = {one: meter.seconds(bench.run_of(one)) for one in passes}
        peaks = {one: meter.peak(bench.run_of(one)) for one in wanted} if meter.sees_memory else None
    arithmetic = meter.seconds(bench.outer_update()) if passes else 0.0
    if meta:
        mode = _modes(settings)[0]
        each = [meter.seconds(partial(bench.meta_gradient, attacker, mode)) for attacker in settings.simulated]
        arithmetic += sum(each) / len(each)
    peak = None if peaks is None else _peak(bench, peaks, meter, meta=meta)
    return Measured(seconds=seconds, arithmetic=arithmetic, peak=peak)


def attackers_passes(settings: EraseSettings) -> list[Pass]:
    """Those that the meta-gradient takes, also the one by which ``auto`` checks itself at its start."""
    first_order, size = settings.meta_gradient == "first-order", settings.batch_size
    found = [Pass("tuned", size, first_order), Pass("all", 2 * size, first_order)]
    if not first_order:
        found.append(Pass("all", size))
    if settings.meta_gradient in ("auto", "double-backward"):
        found.append(Pass("product", size))
    return found


def _diagnosis(settings: EraseSettings) -> list[Pass]:
    return [Pass("all", settings.batch_size)] if settings.diagnostics_every else []


def _peak(bench: _Bench, peaks: dict[Pass, int], meter: Meter, *, meta: bool) -> int:
    settings, gradient = bench.settings, bench.phi_bytes
    found = [peak for one, peak in peaks.items() if one.kind in ("trained", "forward", "teacher")]
    found.append(gradient + meter.peak(bench.outer_update()))
    modes = _modes(settings)
    if meta:
        found += [
            gradient + _meta_peak(bench, attacker, mode, peaks, meter)
            for attacker in settings.simulated
            for mode in modes
        ]
    for one in _diagnosis(settings):
        # The meta-gradient, theta_M and what an exact mode adds; then the first of Eq. 4's two gradients.
        sets = 1 + meta * (2 + (settings.meta_gradient != "first-order"))
        found.append(gradient + sets * bench.theta_bytes + peaks[one])
    return max(found)


def _meta_peak(bench: _Bench, attacker: Attacker, mode: MetaGradientMode, peaks: dict[Pass, int], meter: Meter) -> int:
    """The arithmetic's own peak, or what it holds at a pass and the pass beside it."""
    before = meter.held()
    at_passes: list[int] = []

    def met(one: Pass) -> None:
        at_passes.append(meter.held() - before + peaks[one])

    own = meter.peak(partial(bench.meta_gradient, attacker, mode, met, copies=True))
    return max(own, *at_passes)


class _Bench:
    """What the passes and the arithmetic need, made once."""

    def __init__(
        self, model: TextToImageModel, settings: EraseSettings, trained: Collection[str], averages: int
    ) -> None:
        self.model, self.settings, self.trained, self.averages = model, settings, sorted(trained), averages
        self.theta: Params = dict(model.unet.named_parameters())
        self.teacher = in_precision(self.theta, settings.teacher_precision)
        self.theta_bytes = sum(p.nbytes for p in self.theta.values())
        self.phi_bytes = sum(self.theta[name].nbytes for name in self.trained)
        self.tuned = subset(model.parameter_names, settings.inner_subset, setting="inner_subset")

    def run_of(self, one: Pass) -> Callable[[], object]:
        """One pass, ready to be run."""
        model = self.model.in_precision(self.settings.precision) if one.first_order else self.model
        names = {"trained": self.trained, "tuned": self.tuned}.get(one.kind)
        loss = _denoising(model, one.pictures)
        match one.kind:
            case "forward":
                return torch.no_grad()(partial(loss, self.theta))
            case "teacher":
                return torch.no_grad()(partial(_denoising(_Teacher(model), one.pictures), self.teacher))
            case "product":
                direction = {name: self.theta[name].detach() for name in self.tuned}
                return partial(double_backward_product, loss, self.theta, None, direction)
            case _:
                return partial(value_and_gradient, loss, self.theta, names)

    def meta_gradient(
        self,
        attacker: Attacker,
        mode: MetaGradientMode,
        met: Callable[[Pass], None] | None = None,
        *,
        copies: bool = False,
    ) -> object:
        """The arithmetic of the meta-gradient; ``met`` hears of each pass that there would be."""
        s = self.settings
        first_order = s.meta_gradient == "first-order"
        tuned, ends = Pass("tuned", s.batch_size, first_order), Pass("all", 2 * s.batch_size, first_order)
        product = Pass("product" if isinstance(mode, DoubleBackward) else "all", s.batch_size, first_order)
        inner = [_Free(tuned, product, met, copies) for _ in range(attacker.steps)]
        problem = MetaProblem(
            inner_losses=inner,
            inner=simulated_finetuning(self.model.parameter_names, attacker, s),
            outer=_Free(ends, ends, met, copies),
            along_path=s.meta_loss == "path",
            with_first_order=not first_order and s.diagnostics_every > 0,
        )
        return mode(problem, self.theta)

    def outer_update(self) -> Callable[[], object]:
        """Adding up, clipping and stepping what is trained, and its moving averages; ready to be run."""
        moved = {name: self.theta[name].detach().clone() for name in self.trained}
        gradient = {name: p.detach() for name, p in moved.items()}
        optimizer = outer_optimizer(list(moved.values()), self.settings)

        def update() -> None:
            for name, p in moved.items():
                p.grad = laid_out_like(p, gradient[name] + self.settings.gamma2 * gradient[name])
            torch.nn.utils.clip_grad_norm_(list(moved.values()), self.settings.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for _ in range(self.averages):
                moved_average(gradient, moved, 0.9)

        return update


def _modes(settings: EraseSettings) -> list[MetaGradientMode]:
    """What a step takes, then what else a run does: ``auto`` is the difference, checked by a double backward."""
    match settings.meta_gradient:
        case "first-order":
            return [FirstOrder()]
        case "double-backward":
            return [DoubleBackward()]
        case "gradient-difference":
            return [GradientDifference()]
    return [GradientDifference(), DoubleBackward()]


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


class _Free:
    """A loss that costs nothing and whose gradient is theta: new tensors with ``copies``, else theta's own."""

    def __init__(self, first: Pass, later: Pass, met: Callable[[Pass], None] | None, copies: bool) -> None:
        self._pass, self._later, self._met, self._copies = first, later, met, copies

    def __call__(self, theta: Params) -> Tensor:
        if self._met is not None:
            self._met(self._pass)
        self._pass = self._later
        value: Tensor = _GradientIsTheta.apply(self._copies, *theta.values())
        return value


class _GradientIsTheta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copies: bool, *theta: Tensor) -> Tensor:
        ctx.theta, ctx.copies = theta, copies
        return theta[0].new_ones(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own: Sequence[Tensor] = [p.detach() for p in ctx.theta]
        wanted = zip(own, ctx.needs_input_grad[1:], strict=True)
        return None, *((p.clone() if ctx.copies else p) if needed else None for p, needed in wanted)
