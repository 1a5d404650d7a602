"""Stable Diffusion 1.x and 2.x: one text encoder, whose tokens the UNet's cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metaunlearn.conditioning import Conditioning
from metaunlearn.models.tokens import TokenModel


class StableDiffusion(TokenModel):
    """A diffusers ``StableDiffusionPipeline`` as the equations see it."""

    family = "sd"
    text_encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)

    def encode_chunk(self, prompts: list[str]) -> Conditioning:
        """A few prompts, as the pipeline encodes them."""
        return Conditioning(self.pipeline.encode_prompt(prompts, self.device, 1, False)[0])

    def conditioning(self, encoded: Sequence[Any]) -> Conditioning:
        """The only text encoder's last layer."""
        (only,) = encoded
        return Conditioning(only.last_hidden_state)
