"""What a denoiser is told beside x_t and t: one or several tensors for each picture, handled as one thing.

Shapes: B pictures, T text tokens, D width of a token, E width of a pooled embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts for B pictures: ``tokens`` in every family, the rest in Stable Diffusion XL only."""

    tokens: Tensor
    """(B, T, D): what cross-attention reads."""
    pooled: Tensor | None = None
    """(B, E): the whole prompt in one vector, which enters with the time embedding."""
    time_ids: Tensor | None = None
    """(B, 6): original height and width, top and left of the crop, target height and width, in pixels."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        """The conditioning of these pictures, in this order."""
        return Conditioning(**{name: part[rows] for name, part in self.tensors().items()})

    def expand(self, count: int) -> Conditioning:
        """The only picture's conditioning for ``count`` pictures, without a copy."""
        return Conditioning(
            **{name: part.expand(count, *(-1,) * (part.ndim - 1)) for name, part in self.tensors().items()}
        )

    def to(self, target: torch.device | torch.dtype | str) -> Conditioning:
        """On another device, or in another precision."""
        return Conditioning(**{name: part.to(target) for name, part in self.tensors().items()})

    def chunk(self, count: int) -> list[Conditioning]:
        """At most ``count`` batches of about the same size, in order, as :func:`torch.chunk` cuts tensors."""
        names = self.tensors().keys()
        cut = zip(*(part.chunk(count) for part in self.tensors().values()), strict=True)
        return [Conditioning(**dict(zip(names, parts, strict=True))) for parts in cut]

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Several batches as one; all must have the same tensors."""
        names = parts[0].tensors().keys()
        if any(part.tensors().keys() != names for part in parts):
            raise ValueError("conditionings of different families cannot be joined")
        return Conditioning(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in names})

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors that are there, by name; :meth:`of_tensors` is the way back."""
        named = {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> Conditioning:
        """From what :meth:`tensors` gave; other names are left alone."""
        names = [field.name for field in fields(Conditioning)]
        return Conditioning(**{name: tensors[prefix + name] for name in names if prefix + name in tensors})

    def unet_inputs(self) -> dict[str, Any]:
        """The keyword arguments that a diffusers UNet2DConditionModel takes it in."""
        inputs: dict[str, Any] = {"encoder_hidden_states": self.tokens}
        if self.pooled is not None:
            inputs["added_cond_kwargs"] = {"text_embeds": self.pooled, "time_ids": self.time_ids}
        return inputs
