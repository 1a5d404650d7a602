"""Costs by count: operations and bytes of a denoiser of P parameters, of which phi are trained. Nothing is computed.

- One gradient on one picture costs 3 F, F the operations of one forward pass. F, and the bytes that autograd keeps of
  one (A), are counted on fake tensors, which have shapes but no memory.
- Time is operations / (the device's speed at multiplying matrices, timed for a tenth of a second, x ``EFFICIENCY``).
- Memory is the pipeline, ``parameter_copies`` times P, three times phi (gradient and AdamW's two moments, which
  ``adamw-8bit`` keeps in a quarter), all in float32, the pictures and sampling paths that are trained on, and A for the
  largest batch that is alive at once; a moving average, as SDD's teacher is, is one more phi. ``precision`` is not
  counted: it lowers A by up to half. Off the CPU the pipeline's own denoiser is not there meanwhile. Before the steps
  come pictures and sampling paths (``drawing.py``); the peak is whichever is larger.
- Gradient checkpointing makes A what lies between blocks, and a gradient costs 4 F.

Expect the right order of magnitude, not more: what an operation costs differs between sizes and devices, and what is
counted as alive at once is not so in every part of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from metaunlearn.conditioning import Conditioning
from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.concepts import unnamed_prompts
from metaunlearn.doctor.drawing import DrawingFacts, drawing_facts
from metaunlearn.doctor.passes import GRADIENTS, Pass, Passes, at_theta, direct_needs_a_batch
from metaunlearn.erasure.interface import Method, OptimisedMethod, takes_steps
from metaunlearn.erasure.prepare import own_picture_counts
from metaunlearn.erasure.sdd import Sdd
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.models.memory import checkpointing

EFFICIENCY = 0.4
"""Share of the speed at multiplying matrices that a UNet's gradient reaches: between 0.2 and 0.6 where it was timed."""
DOUBLE_BACKWARD_ACTIVATIONS = 16
"""Times as much kept for backward as in a plain gradient, measured on a UNet of 4.2 M parameters."""
FLOAT32 = 4
OPTIMIZER_STATE = {"sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}
"""Copies of what the attacker tunes that its optimiser keeps."""
BANK_TENSORS = 4
"""Of each latent on a sampling path: itself, two predictions, the target."""
PICTURE_TENSORS = 2
"""Of each picture: mean and standard deviation of its latent."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the counts are made of."""

    forward: float
    """F, operations of one forward pass on one picture."""
    kept: int
    """A, bytes that autograd keeps of it."""
    pipeline_bytes: int
    """Parameters of all its parts in float32."""
    parameters: int
    """P."""
    trained: int
    """phi."""
    latent_bytes: int
    """Of one picture."""
    pictures: int
    """That are trained on, of a run that names no concept of Canvas and nothing to keep."""
    drawing: DrawingFacts
    """Of making them."""


def facts_of(model: TextToImageModel, trained: int, settings: EraseSettings) -> Facts:
    """Count once for one model; ``settings`` say whether its blocks keep what is inside them."""
    forward, kept = forward_cost(model, gradient_checkpointing=settings.gradient_checkpointing)
    return Facts(
        forward=forward,
        kept=kept,
        pipeline_bytes=weights_bytes(model.pipeline),
        parameters=sum(p.numel() for p in model.unet.parameters()),
        trained=trained,
        latent_bytes=FLOAT32 * torch.Size(model.latent_shape).numel(),
        pictures=sum(own_picture_counts(unnamed_prompts(model.pipeline), settings).values()),
        drawing=drawing_facts(model),
    )


def weights_bytes(pipeline: Any) -> int:
    """Parameters of all parts of ``pipeline`` in float32."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return FLOAT32 * sum(p.numel() for module in modules for p in module.parameters())


def forward_cost(model: TextToImageModel, *, gradient_checkpointing: bool = False) -> tuple[float, int]:
    """Operations of one forward pass of the denoiser on one picture, and bytes that autograd keeps of it.

    With ``gradient_checkpointing`` these are what is kept between its blocks; one block's own come to them in turn.
    """
    shapes = tuple((name, tuple(part.shape)) for name, part in model.unconditional().tensors().items())
    denoiser: Any = type(model.unet)
    config = json.dumps(dict(model.unet.config))
    return _cost_of(denoiser, config, tuple(model.latent_shape), shapes, gradient_checkpointing)


@cache
def _cost_of(
    denoiser: Any,
    config: str,
    latent_shape: tuple[int, ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    gradient_checkpointing: bool,
) -> tuple[float, int]:
    """Once for an architecture, of which a grid asks for every method. ``config``: JSON; ``shapes``: conditioning."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        # By storage: views of one storage count once, and parameters are there anyway.
        storage = tensor.untyped_storage()._cdata
        if storage not in owned:
            kept[storage] = tensor
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with FakeTensorMode():
        twin = denoiser.from_config(json.loads(config))
        owned = {p.untyped_storage()._cdata for p in twin.parameters()}
        x_t = torch.zeros(1, *latent_shape)
        cond = Conditioning(**{name: torch.zeros(shape) for name, shape in shapes})
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


CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations}
"""The counter has no formula of its own for the fused attention of the CPU."""


def operations(one: Pass, facts: Facts, *, gradient_checkpointing: bool) -> float:
    """Of one pass."""
    in_a_gradient = 4 if gradient_checkpointing else 3
    return facts.forward * one.pictures * (in_a_gradient * GRADIENTS[one.kind] or 1)


def counted_seconds(passes: Passes, facts: Facts, settings: EraseSettings, speed: float) -> float:
    """Of these passes, at ``speed`` in operations a second when multiplying matrices."""
    checkpointed = settings.gradient_checkpointing
    work = sum(count * operations(one, facts, gradient_checkpointing=checkpointed) for one, count in passes.items())
    return work / (speed * EFFICIENCY)


def parameter_copies(settings: EraseSettings, *, meta: bool, device: str = "cpu") -> int:
    """Copies of theta beside the pipeline's own, on ``device``, at the worst moment of a step that is diagnosed if any.

    One is theta, two are Delta and theta + Delta with ``inner_horizon``, and the rest is the meta-gradient's: of a
    mixture of attackers, the most.
    """
    if not meta:
        return 1
    of_horizon = 0 if settings.inner_horizon is None else 2
    of_turn = _first_order if settings.meta_gradient == "first-order" else partial(_there_and_back, device=device)
    return 1 + of_horizon + max(of_turn(attacker, settings) for attacker in settings.simulated)


def _first_order(attacker: Attacker, settings: EraseSettings) -> int:
    """A gradient, theta_m and theta_{m-1} unless that is theta, the optimiser's state before and after, and along the
    path the sum of its terms so far. No path is kept."""
    of_path = settings.meta_loss == "path"
    return 2 + (1 + of_path) * (attacker.steps > 1) + 2 * OPTIMIZER_STATE[attacker.optimizer]


def _there_and_back(attacker: Attacker, settings: EraseSettings, *, device: str) -> int:
    """On the way back through each step m: what is stored, what a product or the optimiser's transpose works on, v.

    Who wants theta_M, a diagnosis or a persistent attacker, keeps it all the way. For a diagnosis there also is the
    first-order adjoint, which is v itself until the first step is behind.
    """
    elsewhere = settings.inner_store == "disk" or (settings.inner_store == "host" and device != "cpu")
    path, diagnosed = settings.meta_loss == "path", settings.diagnostics_every > 0
    steps = range(1, attacker.steps + 1)
    gradients = 1 if settings.meta_gradient == "gradient-difference" else 2
    of_product = partial(_of_product, gradients=gradients)
    of_step = _of_adam if attacker.optimizer in ("adam", "adamw") else of_product
    backwards = max(of_step(m, path=path, elsewhere=elsewhere) + (diagnosed and m < attacker.steps) for m in steps)
    # v, w before and after, d: momentum's d is not v itself.
    of_momentum = 3 if attacker.optimizer == "momentum" else 0
    return backwards + of_momentum + (diagnosed or settings.inner_horizon is not None)


def _of_product(m: int, *, path: bool, elsewhere: bool, gradients: int) -> int:
    """v, the ``gradients`` of a product, and theta_1 .. theta_{m-1}. Of a difference: one gradient, ahead of the set
    that is moved, which is the last of those (the one behind is never a set); of a double backward the slope and H d.

    In place of theta itself, unless its bits lie elsewhere meanwhile, and of what the path still needs, a copy moves.
    """
    stored, copied = m - 1, path or (m == 1 and not elsewhere)
    return 1 + gradients + copied + (min(stored, 1) if elsewhere else stored)


def _of_adam(m: int, *, path: bool, elsewhere: bool) -> int:
    """g_1 .. g_m and theta_1 .. theta_{m-1}; v, two moments and their adjoints before and after, d, and what makes it:
    more than any product has."""
    return 11 + (1 if elsewhere else m + m - 1)


def lasting_copies(settings: EraseSettings, *, meta: bool) -> int:
    """Those of them that are there between the steps, too: theta, and the Delta of ``inner_horizon``."""
    return 1 + (meta and settings.inner_horizon is not None)


def moving_averages(method: Method, settings: EraseSettings) -> int:
    """How many of what is trained a run keeps."""
    return isinstance(method, Sdd) + (settings.ema_decay is not None)


def lasting_bytes(method: Method, facts: Facts, settings: EraseSettings, *, meta: bool) -> int:
    """What is there before the first step and after the last: the pipeline, theta and Delta, the optimiser's moments,
    averages, MODEL's own answers' parameters, pictures and paths."""
    steps = takes_steps(method, meta=meta)
    moments = 0.5 if settings.outer_optimizer == "adamw-8bit" else 2.0
    copies = lasting_copies(settings, meta=meta) * facts.parameters
    copies += round((moving_averages(method, settings) + moments) * facts.trained)
    if steps and settings.retain_loss == "distillation":
        copies += facts.parameters if settings.teacher_precision == "float32" else facts.parameters // 2
    latents = PICTURE_TENSORS * facts.pictures if steps else 0
    if isinstance(method, OptimisedMethod):
        latents += BANK_TENSORS * settings.bank_trajectories * settings.bank_steps
    return facts.pipeline_bytes + FLOAT32 * copies + latents * facts.latent_bytes


def bytes_aside(facts: Facts, device: str) -> int:
    """What of it lies on the host during the steps: the pipeline's own denoiser, whose passes are all told theta."""
    return 0 if torch.device(device).type == "cpu" else FLOAT32 * facts.parameters


def drawing_bytes(method: Method, facts: Facts, settings: EraseSettings) -> int:
    """Peak while MODEL makes its own pictures and samples its paths, under a copy of theta; in bytes."""
    paths = settings.bank_trajectories if isinstance(method, OptimisedMethod) else 0
    working = facts.drawing.peak(pictures=facts.pictures, picture_batch=settings.picture_batch, paths=paths)
    copies = facts.parameters if paths else 0
    latents = PICTURE_TENSORS * facts.pictures + BANK_TENSORS * paths * settings.bank_steps
    return facts.pipeline_bytes + FLOAT32 * copies + latents * facts.latent_bytes + working


def counted_memory(
    method: Method, facts: Facts, settings: EraseSettings, *, meta: bool, defended: bool, device: str = "cpu"
) -> int:
    """Peak of a run, in bytes on ``device``."""
    if defended:  # No simulated attacker of its goes on from step to step.
        settings = settings.model_copy(update={"inner_horizon": None})
    lasting = lasting_bytes(method, facts, settings, meta=meta)
    if not takes_steps(method, meta=meta):
        return lasting
    working = parameter_copies(settings, meta=meta or defended, device=device) - lasting_copies(settings, meta=meta)
    copies = working * facts.parameters + facts.trained
    pictures = at_theta(settings, meta=meta, forget=True).pictures
    if meta and direct_needs_a_batch(settings):
        pictures = max(pictures, 3 * settings.batch_size)
    if meta and settings.meta_gradient in ("auto", "double-backward"):  # auto takes one to check itself.
        pictures = max(pictures, DOUBLE_BACKWARD_ACTIVATIONS * settings.batch_size)
    stepping = lasting - bytes_aside(facts, device) + FLOAT32 * copies + pictures * facts.kept
    return max(stepping, lasting, drawing_bytes(method, facts, settings))


def matrix_speed(device: str = "cpu", seconds: float = 0.1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Operations a second when multiplying two float32 matrices: 512 x 512 on a CPU, 4096 x 4096 elsewhere."""
    size = 512 if torch.device(device).type == "cpu" else 4096
    a = torch.ones(size, size, device=device)
    product = a @ a
    done, began = 0, clock()
    while clock() - began < seconds:
        product = a @ a
        product[0, 0].item()  # An accelerator only queues what nobody asks for.
        done += 1
    return 2 * size**3 * done / (clock() - began)
