"""Quantisation: does what was erased come back, or what was hardened go, when a user stores fewer bits?

Each row of a matrix (its output channel) becomes a multiple of one step: round to nearest, symmetric about zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from metaunlearn.attacks.interface import AttackTask, Input, save_with
from metaunlearn.errors import UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params, add, norm
from metaunlearn.settings import Settings

BITS = range(2, 17)


class Quantize(Settings):
    """All matrices and convolutions of the denoiser at so many bits; biases and norms stay. Saved as float32."""

    needs: ClassVar[tuple[Input, ...]] = ()
    level: ClassVar[str] = "bits"
    strengths: ClassVar[tuple[float, ...]] = (8, 4)
    leaves: ClassVar = "pipeline"
    changed: ClassVar[tuple[str, ...]] = ("unet",)

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """Bits are whole numbers."""
        if any(bits not in BITS for bits in strengths):
            raise UserError(
                f"quantize takes bits, whole numbers from {BITS[0]} to {BITS[-1]} (strengths=, --strengths 4,8); "
                f"got {', '.join(f'{bits:g}' for bits in strengths)}."
            )

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Save the pipeline at ``strength`` bits."""
        theta = task.model.parameters()
        rounded = quantized(theta, int(strength))
        save_with(task.model, rounded, back=theta, folder=folder, twin=twin)
        return {"relative_change": norm(add(rounded, theta, -1.0)) / norm(theta)}


def quantized(theta: Params, bits: int) -> Params:
    """theta with every tensor of two or more dimensions at ``bits`` bits."""
    return {name: round_rows(p, bits) if p.ndim >= 2 else p for name, p in theta.items()}


def round_rows(W: Tensor, bits: int) -> Tensor:
    """Each row of W (out, ...) to the nearest multiples of its step, the largest magnitude / (2^(bits - 1) - 1)."""
    levels = 2 ** (bits - 1) - 1
    step = W.flatten(1).abs().amax(dim=1) / levels
    step = step.where(step > 0, 1.0).view(-1, *(1 for _ in W.shape[1:]))
    return (W / step).round() * step
