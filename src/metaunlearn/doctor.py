"""What is installed here, and roughly what an erasing job needs. No job is started: the second half is an estimate.

How it is estimated, for a denoiser of P parameters of which phi are trained, batch size B and M inner steps:

- One gradient of L_DM on one picture costs 3 F, F the operations of one forward pass. F, and the bytes that autograd
  keeps of one (A), are counted on fake tensors, which have shapes but no memory: nothing is computed.
- An outer step of Algorithm 1 costs ``gradients_per_step`` such gradients on B pictures; SDD's also its share of a new
  trajectory bank, and one more forward pass on B. Closed-form edits themselves are not counted: they take seconds.
- Time is operations / (this machine's speed at multiplying matrices, timed for a tenth of a second, x ``EFFICIENCY``).
- Memory is the pipeline, ``parameter_copies`` times P, three times phi (gradient and AdamW's two moments, which
  ``adamw-8bit`` keeps in a quarter), all in float32, and A for the largest batch that is alive at once; a moving
  average, as SDD's teacher is, is one more phi. ``precision`` is not counted: it lowers A by up to half.
- A defended method says itself how many gradients a step takes; what its base method takes before it is not counted.
- Gradient checkpointing makes A what lies between blocks, and a gradient costs 4 F.

Expect the right order of magnitude, not more.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.concepts import unnamed_prompts
from metaunlearn.erasure.interface import DefendedMethod, Method, OptimisedMethod
from metaunlearn.erasure.prepare import own_picture_counts
from metaunlearn.erasure.registry import check_objective, configure
from metaunlearn.erasure.sdd import Sdd
from metaunlearn.generation import default_sampling
from metaunlearn.meta.alignment import DRAWS
from metaunlearn.models import load
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.memory import checkpointing
from metaunlearn.parameters import subset
from metaunlearn.recipe import default_recipe, read_recipe

REQUIRED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow", "pydantic", "jinja2")
OPTIONAL = {"vl-convert-python": "charts as pictures in reports", "resvg-py": "rebuilding Canvas (make canvas)"}
"""Packages that something works without, and what needs them."""

EFFICIENCY = 0.4
"""Share of the speed at multiplying matrices that a UNet's gradient reaches: between 0.2 and 0.6 where it was timed."""
DOUBLE_BACKWARD_GRADIENTS = 7
"""Gradients' worth of time in one Hessian-vector product by double backward: 5 at M = 1, 10 at M = 5 were timed."""
DOUBLE_BACKWARD_ACTIVATIONS = 16
"""Times as much kept for backward as in a plain gradient, measured on a UNet of 4.2 M parameters."""
FLOAT32 = 4
OPTIMIZER_STATE = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}
"""Copies of what the attacker tunes that its optimiser keeps."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine, as far as a job cares."""

    python: str
    system: str
    cores: int
    """Cores that this process may use."""
    memory_bytes: int | None
    """RAM in all; None where the system does not say."""
    accelerators: tuple[str, ...]
    packages: dict[str, str | None]
    """Version by name of what is needed; None: missing."""
    optional: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class JobEstimate:
    """One erasing job: facts about it, and estimates (see the top of the file)."""

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
    memory_bytes: int
    seconds_per_step: float
    seconds: float
    """Of the whole job: pictures and trajectories first, then all outer steps."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"settings": self.settings.model_dump(), "estimated": True}


def inspect_machine() -> Machine:
    """What is installed and what the hardware is."""
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        accelerators.append("mps")
    return Machine(
        python=platform.python_version(),
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory(),
        accelerators=tuple(accelerators),
        packages={name: _version(name) for name in REQUIRED},
        optional={name: _version(name) for name in OPTIONAL},
    )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def estimate(
    model: Any,
    *,
    method: str = "esd-u-1",
    meta: bool | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    speed: float | None = None,
) -> JobEstimate:
    """What erasing from ``model`` needs on this machine's CPU; ``speed`` in operations a second, None: timed."""
    adapter = load(model)
    unet: nn.Module = adapter.unet
    parameters = sum(p.numel() for p in unet.parameters())
    recipe = recipe or default_recipe(parameters, adapter.text_width, adapter.family)
    chosen = configure(method, read_recipe(recipe), overrides)
    meta = chosen.with_meta(meta)
    check_objective(chosen, meta=meta)
    settings, optimised = chosen.settings, isinstance(chosen.method, OptimisedMethod)
    names = chosen.method.trained(adapter)
    trained = sum(p.numel() for name, p in unet.named_parameters() if name in names)
    for setting in ("inner_subset", "diagnostics_subset"):
        subset(adapter.parameter_names, getattr(settings, setting), setting=setting)
    forward, kept = forward_cost(adapter, gradient_checkpointing=settings.gradient_checkpointing)
    gradients = gradients_per_step(settings, meta=meta, forget=optimised)
    if isinstance(chosen.method, DefendedMethod):
        gradients = settings.accumulation + round(chosen.method.gradients(settings))
    pace = (speed or matrix_speed()) * EFFICIENCY
    in_a_gradient = 4 if settings.gradient_checkpointing else 3
    passes = in_a_gradient * gradients * settings.batch_size + _teachers_passes(chosen.method, settings)
    step = passes * forward / pace
    copies = parameter_copies(settings, meta=meta or chosen.defended) * parameters
    averages = isinstance(chosen.method, Sdd) + (settings.ema_decay is not None)
    moments = 0.5 if settings.outer_optimizer == "adamw-8bit" else 2.0
    copies += round((1 + averages + moments) * trained)
    if gradients and settings.retain_loss == "distillation":
        copies += parameters if settings.teacher_precision == "float32" else parameters // 2
    before = _forward_passes_before(adapter, settings, bank=optimised) if gradients else 0
    if gradients and settings.retain_weighting == "alignment":
        before += in_a_gradient * DRAWS * _weighed_prompts(adapter, settings)
    heal_pictures = settings.heal_steps * settings.accumulation * settings.batch_size
    healing = heal_pictures * (in_a_gradient + (settings.retain_loss == "distillation"))
    return JobEstimate(
        model=str(model),
        method=chosen.name,
        recipe=recipe,
        settings=settings,
        method_settings=chosen.method_settings,
        denoiser_parameters=parameters,
        trained_parameters=trained,
        image_size=adapter.image_size,
        gradients_per_step=gradients,
        memory_bytes=_bytes(adapter, settings, copies, kept, meta=meta),
        seconds_per_step=step,
        seconds=(settings.steps * step + healing * forward / pace if gradients else 0.0) + before * forward / pace,
    )


def forward_cost(model: TextToImageModel, *, gradient_checkpointing: bool = False) -> tuple[float, int]:
    """Operations of one forward pass of the denoiser on one picture, and bytes that autograd keeps of it.

    With ``gradient_checkpointing`` these are what is kept between its blocks; one block's own come to them in turn.
    """
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # By storage: views of one storage count once, and parameters are there anyway.
        storage = tensor.untyped_storage()._cdata
        if storage not in owned:
            kept[storage] = tensor
        return tensor

    shapes = {name: part.shape for name, part in model.unconditional().tensors().items()}
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with FakeTensorMode():
        twin = type(model.unet).from_config(model.unet.config)
        owned = {p.untyped_storage()._cdata for p in twin.parameters()}
        x_t = torch.zeros(1, *model.latent_shape)
        cond = Conditioning(**{name: torch.zeros(shape) for name, shape in shapes.items()})
        with (
            checkpointing(twin, gradient_checkpointing),
            counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            # Named, so that what it keeps is alive while it is counted.
            output = twin(x_t, torch.zeros(1, dtype=torch.long), **cond.unet_inputs())
        kept_bytes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del output
    return float(counter.get_total_flops()), kept_bytes


def _attention_operations(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
"""The counter has no formula of its own for the fused attention of the CPU."""


def gradients_per_step(settings: EraseSettings, *, meta: bool, forget: bool = True) -> int:
    """Gradients on ``batch_size`` pictures in an outer step: L_forget and L_retain, M inner steps, two at theta_M or,
    along the path, at each theta_m, M products. All but the attacker's come once for each micro-batch.

    Of a mixture of attackers, the mean. A closed-form method has no L_forget, and without the meta objective no outer
    steps.
    """
    if not meta:
        return 2 * settings.accumulation if forget else 0
    inner_steps = statistics.mean(attacker.steps for attacker in settings.simulated)
    after = 2 * (inner_steps if settings.meta_loss == "path" else 1)
    outside = 1 + forget + _direct_needs_a_batch(settings) + after
    return round(outside * settings.accumulation + inner_steps + inner_steps * _product_cost(settings))


def _direct_needs_a_batch(settings: EraseSettings) -> bool:
    """Whether the direct term of Eq. 3 has pictures, noise or timesteps that L_retain has not, or waits for theta_M."""
    own = settings.meta_retain != "both" or not settings.common_noise or settings.zeta_margin is not None
    return settings.direct_term and own


def _product_cost(settings: EraseSettings) -> int:
    if settings.meta_gradient == "first-order":
        return 0
    return DOUBLE_BACKWARD_GRADIENTS if settings.meta_gradient == "double-backward" else 2


def parameter_copies(settings: EraseSettings, *, meta: bool) -> int:
    """Copies of theta beside the pipeline's own.

    One is theta; the meta-gradient adds theta_1 .. theta_M, v, a moved theta and the gradients on both sides of it, and
    what the attacker's optimiser needs. To first order the path and its gradients are not kept. Of a mixture of
    attackers, the most.
    """
    if not meta:
        return 1
    if settings.meta_gradient == "first-order":
        of_path = settings.meta_loss == "path"  # The sum of its terms so far.
        return 1 + 4 + of_path + max(OPTIMIZER_STATE[attacker.optimizer] for attacker in settings.simulated)
    return 1 + max(attacker.steps + 4 + _optimizer_copies(attacker) for attacker in settings.simulated)


def _optimizer_copies(attacker: Attacker) -> int:
    """On the way back through momentum the adjoint of b; through Adam M gradients, two moments, their adjoints."""
    return {"sgd": 0, "momentum": 1, "adam": attacker.steps + 4, "adamw": attacker.steps + 4}[attacker.optimizer]


def _teachers_passes(method: Method, settings: EraseSettings) -> float:
    """Forward passes on one picture that an outer step has beside its gradients: a distilled L_retain asks MODEL, SDD
    asks the student for its target and its teacher for paths."""
    pictures = settings.batch_size * settings.accumulation
    passes = float(pictures) if settings.retain_loss == "distillation" else 0.0
    if isinstance(method, Sdd):
        passes += pictures + 2 * settings.bank_trajectories * settings.bank_steps / method.bank_refresh
    return passes


def _bytes(model: TextToImageModel, settings: EraseSettings, copies: int, kept: int, *, meta: bool) -> int:
    modules = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]
    own = sum(p.numel() for module in modules for p in module.parameters())
    batches = 3 if meta and _direct_needs_a_batch(settings) else 2
    if meta and settings.meta_gradient == "double-backward":
        batches = max(batches, DOUBLE_BACKWARD_ACTIVATIONS)
    return FLOAT32 * (own + copies) + batches * settings.batch_size * kept


def _weighed_prompts(model: TextToImageModel, settings: EraseSettings) -> int:
    """Retained prompts with a gradient of their own, and the concept's, of a run that names nothing to keep."""
    prompts = unnamed_prompts(model.pipeline)
    return 1 + sum(min(len(kind), settings.retain_images) for kind in (prompts.related, prompts.unrelated))


def _forward_passes_before(model: TextToImageModel, settings: EraseSettings, *, bank: bool) -> int:
    """Of the denoiser on one picture: MODEL's own pictures and the trajectory bank, both guided (two passes a step).

    As many pictures as of a run that names no concept of Canvas and nothing to keep.
    """
    pictures = sum(own_picture_counts(unnamed_prompts(model.pipeline), settings).values())
    steps = default_sampling(model.pipeline).steps
    return 2 * (pictures * steps + bank * settings.bank_trajectories * settings.bank_steps)


def matrix_speed(seconds: float = 0.1) -> float:
    """Operations a second when multiplying two 512 x 512 float32 matrices on the CPU."""
    size = 512
    a = torch.ones(size, size)
    a @ a
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ a
        done += 1
    return 2 * size**3 * done / (time.perf_counter() - began)


def describe(machine: Machine, job: JobEstimate | None) -> list[str]:
    """Lines for a person."""
    memory = "memory unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB of memory"
    lines = [
        f"Python {machine.python} on {machine.system}",
        f"{machine.cores} cores, {memory}, accelerators: {', '.join(machine.accelerators) or 'none'}",
        *(f"  {name:<18} {version or 'MISSING'}" for name, version in machine.packages.items()),
        *(
            f"  {name:<18} {version or f'not installed; needed for {OPTIONAL[name]}'}"
            for name, version in machine.optional.items()
        ),
    ]
    return lines if job is None else [*lines, "", *_describe_job(machine, job)]


def _describe_job(machine: Machine, job: JobEstimate) -> list[str]:
    s = job.settings
    inner_steps = ", ".join(str(m) for m in sorted({attacker.steps for attacker in s.simulated}))
    lines = [
        f"erasing from {job.model} ({job.image_size} x {job.image_size} pixels), {job.method}, recipe {job.recipe}:",
        f"  parameters         {job.denoiser_parameters / 1e6:.1f} M, trained {job.trained_parameters / 1e6:.1f} M",
        f"  its own settings   {', '.join(f'{key} = {value!r}' for key, value in job.method_settings.items())}",
        f"  an outer step      {job.gradients_per_step} gradients on {s.batch_size} pictures (M = {inner_steps})",
        f"  memory             about {job.memory_bytes / 2**30:.1f} GiB (estimate)",
        f"  time on this CPU   about {job.seconds_per_step:.2g} s a step, "
        f"{job.seconds / 60:.0f} min for {s.steps} steps and what comes before (estimate)",
    ]
    if machine.memory_bytes is not None and job.memory_bytes > machine.memory_bytes:
        lines.append("  This machine has less memory than that: lower batch_size (--set batch_size=...).")
    return lines
