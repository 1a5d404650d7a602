"""Which meta-gradient a run takes: by its name, or by what a check at the start of the run finds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch

from metaunlearn.config import EraseSettings
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.meta.hypergradient import (
    DoubleBackward,
    FirstOrder,
    GradientDifference,
    MetaGradientMode,
    MetaProblem,
    double_backward_product,
)
from metaunlearn.meta.products import HessianProduct, low_precision, usual_step
from metaunlearn.models.precision import Products
from metaunlearn.parameters import Params, add, norm
from metaunlearn.processes import ALONE, Processes
from metaunlearn.shards import are_pieces

logger = logging.getLogger(__name__)

MODES: dict[str, Callable[[], MetaGradientMode]] = {
    "first-order": FirstOrder,
    "double-backward": DoubleBackward,
    "gradient-difference": GradientDifference,
}
"""What ``meta_gradient`` may be named, besides ``auto``."""

AUTO_TOLERANCE: dict[Products, float] = {"ieee": 1e-3, "tf32": 3e-2}
"""``auto`` takes the gradient difference when its relative error on the probe is at most this. TF32's first-order
gradients are off by 1e-3 themselves."""

AUTO_STEPS = (1.0, 0.3, 0.1)
"""``auto`` tries the precision's usual step times these: how sharply the loss curves differs between models, and grows
as they are trained. A step too long costs more than one too short (docs/numerics.md)."""


def resolve(name: str, theta: Params, *probes: MetaProblem, products: Products = "ieee") -> MetaGradientMode:
    """The mode called ``name``; ``auto`` tries the gradient difference on ``probes`` and says in the log what it chose.

    ``probes`` are meta problems like those to come, some for each kind of attacker; a double backward of each is taken
    once (:func:`resolve_in_memory` when that may not fit), and ``auto`` compares the difference at several step lengths
    with it and keeps the best.
    ``products`` is what a gradient difference computes in.
    """
    if name == "auto" and are_pieces(theta.values()):
        logger.info(
            "meta_gradient auto: gradient-difference, unchecked, because sharded parameters have no double backward"
        )
        return GradientDifference(precision=products)
    reason = low_precision(theta)
    if name == "auto" and reason:
        logger.info("meta_gradient auto: double-backward, because %s", reason)
        return DoubleBackward()
    if name == "auto":
        if not probes:
            raise ValueError("meta_gradient 'auto' compares on probes, and none was given")
        tried = _differences(theta, products)
        return _best(tried, _errors(theta, probes, tried), products)
    if name not in MODES:
        raise UserError(
            f"Unknown meta_gradient {name!r} (--set meta_gradient=...); known: {', '.join(MODES)}, auto."
            + did_you_mean(name, [*MODES, "auto"])
        )
    return mode_called(name, products)


def mode_called(name: str, products: Products) -> MetaGradientMode:
    """The one of ``MODES``; a gradient difference computes in ``products``."""
    return GradientDifference(precision=products) if name == "gradient-difference" else MODES[name]()


def difference_products(settings: EraseSettings) -> Products:
    """What a gradient difference computes in (``difference_precision``)."""
    return "tf32" if settings.difference_precision == "tf32" else "ieee"


SMALLEST_PROBE = 2
"""Pictures of a process in a batch; one of either kind that is retained."""


def resolve_in_memory(
    name: str,
    theta: Params,
    probes: Callable[[int], Sequence[MetaProblem]],
    batch_size: int,
    *,
    products: Products = "ieee",
    processes: Processes = ALONE,
) -> MetaGradientMode:
    """As :func:`resolve`, with ``probes`` of batches of ``batch_size``, or of as many pictures as memory allows.

    Where a double backward of the smallest batch does not fit, ``auto`` takes the gradient difference unchecked.
    Several ``processes`` have probes of their own rows, for which nothing may be sent: the others would wait for one
    that runs out of memory. What each found is compared afterwards, so all try the same sizes and take the same mode.
    """
    if name != "auto" or are_pieces(theta.values()) or low_precision(theta):
        return resolve(name, theta, products=products)
    size, tried = batch_size, _differences(theta, products)
    while True:
        full, errors = False, [math.inf] * len(tried)
        try:
            errors = _errors(theta, probes(size), tried)
        except torch.OutOfMemoryError:
            full = True  # Only after this block does the failed pass let go of what it held.
        somewhere_full, *errors = processes.highest([full, *errors])
        if not somewhere_full:
            return _best(tried, errors, products)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not _for_each(size // 2, processes):
            break
        size //= 2
        logger.info("meta_gradient auto: no memory for a double backward of that many pictures; trying %d", size)
    logger.warning(
        "meta_gradient auto: gradient-difference, unchecked, because a double backward of %d pictures, to compare it "
        "with, does not fit into memory",
        size,
    )
    return GradientDifference(precision=products)


def chosen_step(mode: MetaGradientMode, theta: Params) -> float | None:
    """What ``auto`` chose, as a number: the difference's relative step, 0 for the double backward, None for neither."""
    if isinstance(mode, GradientDifference):
        return mode.relative_step or usual_step(theta, mode.precision)
    return 0.0 if isinstance(mode, DoubleBackward) else None


def with_step(step: float, products: Products) -> MetaGradientMode:
    """The mode of :func:`chosen_step`."""
    return GradientDifference(relative_step=step, precision=products) if step else DoubleBackward()


def usual_product(theta: Params) -> HessianProduct:
    """The gradient difference at its usual step; where ``theta``'s precision is too low for it, the double backward."""
    return double_backward_product if low_precision(theta) else GradientDifference().product


def product_named(name: str, theta: Params) -> HessianProduct | None:
    """How the mode called ``name`` multiplies by a Hessian, None where it is taken as zero; ``auto``: as usual."""
    return {
        "auto": usual_product(theta),
        "first-order": None,
        "double-backward": double_backward_product,
        "gradient-difference": GradientDifference().product,
    }[name]


def mode_name(mode: MetaGradientMode) -> str:
    """What ``mode`` is called in ``meta_gradient`` and in run records."""
    return next(name for name, kind in MODES.items() if type(mode) is kind)


def _for_each(size: int, processes: Processes) -> bool:
    """Whether each process gets as many pictures of a batch of ``size`` as the others, of either kind."""
    related = size // 2
    return size >= SMALLEST_PROBE * processes.count and not (size % processes.count or related % processes.count)


def _differences(theta: Params, products: Products) -> list[GradientDifference]:
    """Those that ``auto`` tries."""
    usual = usual_step(theta, products)
    return [GradientDifference(relative_step=factor * usual, precision=products) for factor in AUTO_STEPS]


def _errors(theta: Params, probes: Sequence[MetaProblem], tried: Sequence[GradientDifference]) -> list[float]:
    """The worst relative error of each of the modes ``tried`` against a double backward."""
    errors = [0.0] * len(tried)
    for probe in probes:
        expected = DoubleBackward()(probe, theta).gradient
        found = [_relative_error(mode(probe, theta).gradient, expected) for mode in tried]
        errors = [max(pair) for pair in zip(errors, found, strict=True)]
    return errors


def _best(tried: Sequence[GradientDifference], errors: Sequence[float], products: Products) -> MetaGradientMode:
    """The mode of least error, if that is small enough; else the double backward."""
    error, best = min(zip(errors, tried, strict=True), key=lambda pair: pair[0])
    limit = AUTO_TOLERANCE[products]
    if error <= limit:
        logger.info(
            "meta_gradient auto: gradient-difference with step %.0e, relative error %.1e against double-backward",
            best.relative_step,
            error,
        )
        return best
    logger.warning(
        "meta_gradient auto: double-backward, because gradient-difference has relative error %.1e (limit %.0e)",
        error,
        limit,
    )
    return DoubleBackward()


def _relative_error(gradient: Params, expected: Params) -> float:
    """||g - g_ref|| / ||g_ref||; what is not a number is infinitely wrong, so that a comparison cannot lose it."""
    error = norm(add(gradient, expected, -1.0)) / (norm(expected) or 1.0)
    return error if math.isfinite(error) else math.inf
