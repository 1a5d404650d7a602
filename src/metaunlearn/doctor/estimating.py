"""What one erasing job needs: counted, or measured where that is cheap. No job is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import unnamed_prompts
from metaunlearn.doctor.advice import Advice, advise
from metaunlearn.doctor.counting import (
    Facts,
    bytes_aside,
    counted_memory,
    counted_seconds,
    drawing_bytes,
    facts_of,
    lasting_bytes,
    matrix_speed,
    moving_averages,
)
from metaunlearn.doctor.machine import free_memory, memory_of
from metaunlearn.doctor.measuring import Measured, measure
from metaunlearn.doctor.meter import Meter
from metaunlearn.doctor.passes import Pass, gradients_in, outer_step
from metaunlearn.erasure.interface import DefendedMethod, OptimisedMethod
from metaunlearn.erasure.registry import Configured, check_objective, configure
from metaunlearn.generation import default_sampling, pictures_at_once
from metaunlearn.meta.alignment import DRAWS
from metaunlearn.meta.inner import attacked
from metaunlearn.models import adapt, own_pipeline, read_only
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.parameters import subset
from metaunlearn.recipe import read_recipe, recipe_for

CHEAP_SECONDS = 10.0
"""By the count, of one of each pass that a step takes: what takes longer is not measured."""
GUIDED = 2
"""Forward passes in a step of guided sampling."""


@dataclass(frozen=True, kw_only=True)
class JobEstimate:
    """One erasing job: facts about it, and estimates."""

    model: str
    method: str
    recipe: str
    settings: EraseSettings
    method_settings: dict[str, Any]
    """Those that only this method has."""
    denoiser_parameters: int
    trained_parameters: int
    image_size: int
    """Pixels a side."""
    gradients_per_step: int
    """In units of one gradient of L_DM on a batch; 0 where there are no outer steps."""
    device: str
    """Where it would run."""
    available_bytes: int | None
    """Memory there is: the GPU's, or RAM; None: not known."""
    free_bytes: int | None
    """What of it is not in use now, before the job is there; None: not known, or the memory was given."""
    memory_bytes: int
    """Peak on ``device``, beside the process itself."""
    seconds_per_step: float
    seconds: float
    """Of the whole job: pictures and trajectories first, what erases before a defence, then all outer steps."""
    time_measured: bool
    """Whether the time comes of the model's own gradients, timed here; else it is a count, right to an order of
    magnitude."""
    memory_measured: bool
    """The same of the memory."""
    advice: tuple[Advice, ...]
    """What to switch on, in the order of what it costs, when there is less memory than that; else empty."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"settings": self.settings.model_dump(), "estimated": True}


def estimate(
    model: Any,
    *,
    method: str = "esd-u-1",
    meta: bool | None = None,
    recipe: str | None = None,
    overrides: Overrides = (),
    device: str = "cpu",
    speed: float | None = None,
    measured: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    available_bytes: int | None = None,
) -> JobEstimate:
    """What erasing from ``model`` needs on ``device``, by count; ``measured``: by measurement where that is cheap.

    ``speed`` is the device's at multiplying matrices, in operations a second; None: timed. ``available_bytes``: the
    memory to fit into; None: what the device has.
    """
    free = free_memory(device) if available_bytes is None else None
    adapter = adapt(own_pipeline(model)) if measured else adapt(read_only(model))
    recipe = recipe or recipe_for(adapter)
    job = _Job(adapter, configure(method, read_recipe(recipe), as_overrides(overrides)), meta, device)
    check_objective(job.chosen, meta=job.meta)
    settings = job.chosen.settings
    pace = speed or matrix_speed(device, clock=clock)
    available = available_bytes if available_bytes is not None else memory_of(device)
    stages = [job] if job.first is None else [job.first, job]
    cheap = measured and bool(job.passes) and all(stage.is_cheap(pace, job.memory(settings)) for stage in stages)
    costs = [stage.cost(pace, clock if cheap else None) for stage in stages]
    cost, memory = costs[-1], max(cost.memory for cost in costs)
    fits = available is None or memory <= available
    return JobEstimate(
        model=str(model),
        method=job.chosen.name,
        recipe=recipe,
        settings=settings,
        method_settings=job.chosen.method_settings,
        denoiser_parameters=job.facts(settings).parameters,
        trained_parameters=job.facts(settings).trained,
        image_size=adapter.image_size,
        gradients_per_step=gradients_in(job.passes, settings.batch_size),
        device=device,
        available_bytes=available,
        free_bytes=free,
        memory_bytes=memory,
        seconds_per_step=cost.step,
        seconds=sum(stage.seconds(cost) for stage, cost in zip(stages, costs, strict=True)) + job.drawn(cost),
        time_measured=cost.timed,
        memory_measured=cost.looked,
        advice=() if fits else job.advice(memory),
    )


class _Cost(NamedTuple):
    """Of a job's stage: seconds of an outer step, and of one picture's forward pass and gradient; its peak in bytes."""

    step: float
    forward: float
    gradient: float
    memory: int
    timed: bool = False
    """Whether the seconds are measured."""
    looked: bool = False
    """The same of the memory."""


class _Job:
    """One configured method on one model."""

    def __init__(self, adapter: TextToImageModel, chosen: Configured, meta: bool | None, device: str) -> None:
        self.adapter, self.chosen, self.device = adapter, chosen, device
        self.meta = chosen.with_meta(meta)
        self.first = None if chosen.base is None else _Job(adapter, chosen.base, False, device)
        """What erases first, plainly."""
        self.trained = chosen.method.trained(adapter)
        attacked(adapter.parameter_names, chosen.settings.inner_subset, self.trained)
        subset(adapter.parameter_names, chosen.settings.diagnostics_subset, setting="diagnostics_subset")
        paths = pictures_at_once(adapter.pipeline, chosen.settings.picture_batch)
        self.passes = outer_step(chosen.method, chosen.settings, meta=self.meta, paths=paths)
        size = chosen.settings.batch_size
        self.forward_pass, self.gradient_pass = Pass("forward", size), Pass("trained", size, first_order=True)
        self._facts = cache(self._count)

    def facts(self, settings: EraseSettings) -> Facts:
        """Counted once for the model with checkpointing and once without."""
        return self._facts(settings.gradient_checkpointing)

    def _count(self, gradient_checkpointing: bool) -> Facts:
        phi = sum(p.numel() for name, p in self.adapter.unet.named_parameters() if name in self.trained)
        settings = self.chosen.settings.model_copy(update={"gradient_checkpointing": gradient_checkpointing})
        return facts_of(self.adapter, phi, settings)

    def counted(self, passes: dict[Pass, float], pace: float) -> float:
        """Seconds of ``passes``."""
        return counted_seconds(passes, self.facts(self.chosen.settings), self.chosen.settings, pace)

    def memory(self, settings: EraseSettings) -> int:
        """Counted bytes of the job with these ``settings``: the larger of its stages', which checkpoint alike."""
        before = 0
        if self.first is not None:
            alike = {"gradient_checkpointing": settings.gradient_checkpointing}
            before = self.first.memory(self.first.chosen.settings.model_copy(update=alike))
        own = counted_memory(
            self.chosen.method,
            self.facts(settings),
            settings,
            meta=self.meta,
            defended=self.chosen.defended,
            device=self.device,
        )
        return max(before, own)

    def cost(self, pace: float, clock: Callable[[], float] | None) -> _Cost:
        """By count; with a ``clock`` by measurement."""
        memory = self.memory(self.chosen.settings)
        if clock is None or not self.passes:
            one_forward, one_gradient = ({Pass(kind, 1): 1.0} for kind in ("forward", "trained"))
            return _Cost(
                self.counted(self.passes, pace),
                self.counted(one_forward, pace),
                self.counted(one_gradient, pace),
                memory,
            )
        found = self.measure(clock)
        return _Cost(
            step=found.step(self.passes),
            forward=found.seconds[self.forward_pass] / self.forward_pass.pictures,
            gradient=found.seconds[self.gradient_pass] / self.gradient_pass.pictures,
            memory=memory if found.peak is None else self.at_most(found.peak),
            timed=True,
            looked=found.peak is not None,
        )

    def at_most(self, peak: int) -> int:
        """Bytes at the worst moment of all, when that of a step has ``peak`` above what lasts through it."""
        method, settings = self.chosen.method, self.chosen.settings
        facts = self.facts(settings)
        lasting = lasting_bytes(method, facts, settings, meta=self.meta)
        return max(lasting - bytes_aside(facts, self.device) + peak, lasting, drawing_bytes(method, facts, settings))

    def is_cheap(self, pace: float, memory: int) -> bool:
        """Whether measuring takes seconds, and the job fits into what is free."""
        free = free_memory(self.device)
        once = self.counted(dict.fromkeys(self.passes, 1.0), pace)
        return once < CHEAP_SECONDS and (free is None or memory < free)

    def measure(self, clock: Callable[[], float]) -> Measured:
        """On the device, where the pipeline is from then on."""
        extra = dict.fromkeys((self.forward_pass, self.gradient_pass), 0.0)
        return measure(
            adapt(self.adapter.pipeline, self.device),
            self.chosen.settings,
            extra | self.passes,
            self.trained,
            Meter(self.device, clock),
            meta=self.meta,
            averages=moving_averages(self.chosen.method, self.chosen.settings),
        )

    def seconds(self, cost: _Cost) -> float:
        """Of its outer steps, and of the trajectory bank and healing; not of pictures, which all stages share."""
        if not self.passes:
            return 0.0
        s = self.chosen.settings
        paths = s.bank_trajectories * s.bank_steps if isinstance(self.chosen.method, OptimisedMethod) else 0
        healed = s.heal_steps * s.accumulation * s.batch_size
        healing = healed * (cost.gradient + (s.retain_loss == "distillation") * cost.forward)
        return s.steps * cost.step + GUIDED * paths * cost.forward + healing

    def drawn(self, cost: _Cost) -> float:
        """Seconds of MODEL's own pictures and the weighing of prompts."""
        if not self.passes:
            return 0.0
        s, pipeline = self.chosen.settings, self.adapter.pipeline
        seconds = GUIDED * self.facts(s).pictures * default_sampling(pipeline).steps * cost.forward
        if s.retain_weighting == "alignment":
            prompts = unnamed_prompts(pipeline)
            weighed = 1 + sum(min(len(kind), s.retain_images) for kind in (prompts.related, prompts.unrelated))
            seconds += DRAWS * weighed * cost.gradient
        return seconds

    def advice(self, needs: int) -> tuple[Advice, ...]:
        """What to switch on."""
        if not self.passes:  # Every setting is about steps, or about what is made for them.
            return ()
        method = self.chosen.method
        skip = list(method.unread) if isinstance(method, DefendedMethod) else []
        if not (self.meta or self.chosen.defended):
            skip += ["meta_gradient", "inner_store", "difference_precision"]
        return advise(self.chosen.settings, self.memory, needs=needs, device=self.device, skip=skip)
