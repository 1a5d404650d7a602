"""Models that can be asked with tokens instead of text, differentiably: what attacks on words and text encoders need.

Shapes: B prompts, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.errors import UserError
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import Params


class TokenModel(TextToImageModel, Protocol):
    """A model of one text encoder, psi, whose tokens and parameters may be other than its own."""

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, (B, T): start, words, end, padding; what exceeds the context is cut off."""
        ...

    @property
    def token_table(self) -> Tensor:
        """What the text encoder looks tokens up in, (tokens, D)."""
        ...

    def text_parameters(self) -> Params:
        """psi: a copy of every parameter of the text encoder."""
        ...

    def load_text_parameters(self, psi: Params) -> None:
        """Write ``psi`` into the pipeline's text encoder."""
        ...

    def encode_tokens(self, ids: Tensor, psi: Params | None = None, *, looked_up: Tensor | None = None) -> Conditioning:
        """Encoded prompts of token ids (B, T); differentiable, unlike :meth:`encode_prompts`.

        ``psi`` are other parameters for the text encoder. ``looked_up``, (B, T, D), stands in for the rows of
        :attr:`token_table` that ``ids`` would look up.
        """
        ...


def token_model(model: TextToImageModel, wanted: str) -> TokenModel:
    """``model``, if it can be asked with tokens; UserError, which names what is ``wanted`` with them, if it cannot."""
    if not hasattr(type(model), "encode_tokens"):
        raise UserError(
            f"{wanted} works on models of one text encoder (Stable Diffusion 1.x and 2.x); MODEL is a "
            f"{type(model.pipeline).__name__}, which joins {len(model.text_encoders)}. "
            "Attack its denoiser: finetune, lora or dreambooth (kind=, --kind)."
        )
    return cast(TokenModel, model)
