"""Reduced precision: of a forward and backward pass (TF32, autocast), and of a teacher's parameters.

In float16 a gradient below 6e-8 is zero, and L_DM's is, being a mean over many latent values. So the gradient is scaled
on its way into the network and scaled back as it reaches each parameter or other input, in float32: whoever calls
``predict`` sees neither. bfloat16 has float32's range and needs none of it. Both keep 3 digits or fewer, which is
enough for a first-order step and not for a difference of gradients: ``docs/numerics.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.errors import UserError
from metaunlearn.parameters import Params
from metaunlearn.precision_names import short
from metaunlearn.shards import are_pieces

Precision = Literal["float32", "tf32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

GRADIENT_SCALE = {torch.bfloat16: 1.0, torch.float16: 2.0**10}
"""By how much the gradient is larger inside the network."""

Predict = Callable[[Params, Tensor, Tensor, Conditioning], Tensor]


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _scaled(x: Tensor, factor: float) -> Tensor:
    scaled: Tensor = _ScaledGradient.apply(x, factor)
    return scaled


def autocast_predict(
    predict: Predict, dtype: torch.dtype, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning
) -> Tensor:
    """``predict`` with its products in ``dtype``; parameters, output and what leaves as a gradient are float32."""
    scale = GRADIENT_SCALE[dtype]
    if scale != 1.0:

        def back(p: Tensor) -> Tensor:
            return _scaled(p, 1 / scale) if p.requires_grad else p

        theta, x_t = {name: back(p) for name, p in theta.items()}, back(x_t)
        cond = Conditioning(**{name: back(part) for name, part in cond.tensors().items()})
    # A cache of products' operands would hold on to all that a sharded model is to let go of.
    with torch.autocast(x_t.device.type, dtype, cache_enabled=not are_pieces(theta.values())):
        output = predict(theta, x_t, t, cond)
    return _scaled(output.float(), scale)


Products = Literal["ieee", "tf32"]
"""How float32 numbers are multiplied where there is a choice: with 24 bits, or by tensor cores with 11."""


def precision_named(name: str) -> Precision:
    """The precision that is called ``name``; UserError when none is."""
    found = short(name)
    if found not in get_args(Precision):
        raise UserError(f"precision is one of {', '.join(get_args(Precision))}, not {name!r}.")
    return cast(Precision, found)


@contextmanager
def float32_products(kind: Products) -> Iterator[None]:
    """Float32's products as ``kind`` says, in cuBLAS, cuDNN and oneDNN; afterwards as before."""
    # oneDNN on a CPU knows no TF32; what it can do instead, bfloat16, is coarser.
    on_cpu = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]  # type: ignore[attr-defined]
    on_gpu = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    wanted = [*((backend, kind) for backend in on_gpu), *((backend, "ieee") for backend in on_cpu)]
    before = [backend.fp32_precision for backend, _ in wanted]
    try:
        for backend, precision in wanted:
            backend.fp32_precision = precision
        yield
    finally:
        for (backend, _), precision in zip(wanted, before, strict=True):
            backend.fp32_precision = precision


def products_in(precision: Precision) -> AbstractContextManager[None]:
    """Float32's products in TF32 where ``precision`` is that, else as torch has them."""
    return float32_products("tf32") if precision == "tf32" else nullcontext()


@contextmanager
def denoising_in(unet: Any, precision: Precision) -> Iterator[None]:
    """While this is open, pipelines that call ``unet`` get products in ``precision``, and answers in float32."""
    if precision in ("float32", "tf32"):
        with products_in(precision):
            yield
        return
    forward = unet.forward

    def reduced(x_t: Tensor, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        with torch.autocast(x_t.device.type, DTYPES[precision]):
            answer = forward(x_t, *inputs, **options)
        return (answer[0].float(), *answer[1:])

    unet.forward = reduced
    try:
        yield
    finally:
        del unet.forward  # The class's own is seen again.


def in_precision(theta: Params, precision: Precision) -> Params:
    """``theta`` for a teacher, which is asked and never trained."""
    return theta if precision == "float32" else {name: p.to(DTYPES[precision]) for name, p in theta.items()}


def teachers_answer(predict: Predict, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """``predict`` in the precision of ``theta``, float32 outside."""
    dtype = next(iter(theta.values())).dtype
    if dtype == x_t.dtype:
        return predict(theta, x_t, t, cond)
    pooled = None if cond.pooled is None else cond.pooled.to(dtype)
    # Sizes in pixels stay exact; the network rounds them once they are embedded.
    half = Conditioning(cond.tokens.to(dtype), pooled, cond.time_ids)
    return predict(theta, x_t.to(dtype), t, half).to(x_t.dtype)
