"""What the rest of the package needs of a model, whatever its family: one Protocol, one adapter a file beside it.

Shapes: B pictures, C latent channels, h x w latent pixels, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from metaunlearn.conditioning import Conditioning
from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.models.precision import Precision
from metaunlearn.parameters import Params


class TextToImageModel(Protocol):
    """A diffusers pipeline as the equations see it. The pipeline stays usable on its own."""

    pipeline: Any
    """The diffusers pipeline, in float32, in evaluation mode."""
    device: torch.device
    family: str
    """``sd`` (Stable Diffusion 1.x, 2.x) or ``sdxl``."""
    text_encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""
    tokenizers: tuple[str, ...]
    """Names of its tokenizers, one for each of them."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule and prediction type, read from the pipeline's scheduler."""
        ...

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that training uses: square, the side that the pipeline samples by default."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the pictures that training uses, in pixels."""
        ...

    @property
    def parameter_count(self) -> int:
        """How many numbers theta has."""
        ...

    @property
    def parameter_names(self) -> list[str]:
        """The names of theta; unlike :meth:`parameters` it copies nothing."""
        ...

    @property
    def text_width(self) -> int:
        """D, numbers in a token of an encoded prompt."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of all parameters: those of the denoiser, the autoencoder and the text encoders."""
        ...

    def parameters(self) -> Params:
        """theta: a copy of every parameter of the denoiser."""
        ...

    def load_parameters(self, theta: Params) -> None:
        """Write ``theta`` into the pipeline's denoiser."""
        ...

    def sharded(self, *, checkpointed: bool = False) -> TextToImageModel:
        """The same model whose theta is in pieces, one in each process; the pipeline's denoiser goes to the host."""
        ...

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The denoiser's output under parameters ``theta`` for ``x_t`` (B, C, h, w) at ``t`` (B,): (B, C, h, w)."""
        ...

    def in_precision(self, precision: Precision) -> TextToImageModel:
        """The same model, weights shared, whose ``predict`` has its products in ``precision``.

        In float32 it is itself, and in tf32, which whoever takes the gradient switches on (``float32_products``).
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """B encoded prompts; an empty text is encoded like any other."""
        ...

    def unconditional(self) -> Conditioning:
        """What the pipeline itself takes for no prompt in classifier-free guidance: one row, ∅ in the equations."""
        ...

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, (B, encoders, T): start, words, end, padding; what exceeds the context is cut off."""
        ...

    @property
    def token_tables(self) -> tuple[Tensor, ...]:
        """What each text encoder looks tokens up in, (tokens, D of its own)."""
        ...

    def text_parameters(self) -> Params:
        """psi: a copy of the text encoders' parameters that reach the denoiser, each with its encoder's name first."""
        ...

    def load_text_parameters(self, psi: Params) -> None:
        """Write ``psi`` into the pipeline's text encoders."""
        ...

    def encode_tokens(
        self, ids: Tensor, psi: Params | None = None, *, looked_up: Sequence[Tensor] | None = None
    ) -> Conditioning:
        """Encoded prompts of token ids (B, encoders, T); differentiable, unlike :meth:`encode_prompts`.

        ``psi`` are other parameters for the text encoders. ``looked_up``, a (B, T, D) for each of them, stands in for
        the rows of :attr:`token_tables` that ``ids`` would look up.
        """
        ...

    def last_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Where in an encoded prompt its last word's last token stands: 0, the start token, for an empty prompt."""
        ...

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, (B, C, h, w), of images (B, 3, H, W) in [-1, 1]."""
        ...

    def check_concept(self, concept: str) -> None:
        """Refuse a concept of which the tokenizer leaves nothing, or cuts off the end."""
        ...
