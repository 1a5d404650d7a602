"""Stable Diffusion XL: two text encoders, their tokens side by side; a pooled embedding and the picture's size beside.

- tokens: the second-last layers of both encoders, joined along the width (768 + 1280 = 2048);
- pooled: the second encoder's projected embedding of the whole prompt (1280);
- time_ids: original size, crop, target size. Training pictures are said to be what they are after reading: square, of
  the pipeline's own size, uncropped, which is also what the pipeline says when it samples at its default size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metaunlearn.conditioning import Conditioning
from metaunlearn.models.tokens import TokenModel


class StableDiffusionXL(TokenModel):
    """A diffusers ``StableDiffusionXLPipeline`` (the base model) as the equations see it."""

    family = "sdxl"
    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def encode_chunk(self, prompts: list[str]) -> Conditioning:
        """A few prompts, as the pipeline encodes them: the same text for both encoders."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning(tokens, pooled, self._time_ids(len(prompts)))

    def conditioning(self, encoded: Sequence[Any]) -> Conditioning:
        """The second-last layers side by side, and the second text encoder's projected embedding."""
        tokens = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        return Conditioning(tokens, encoded[1].text_embeds, self._time_ids(len(tokens)))

    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """Zeros where the pipeline's ``force_zeros_for_empty_prompt`` says so, as it does in XL's base model."""
        nothing = self.encode_prompts([""])
        if not self.pipeline.config.get("force_zeros_for_empty_prompt", False):
            return nothing
        assert nothing.pooled is not None
        return Conditioning(torch.zeros_like(nothing.tokens), torch.zeros_like(nothing.pooled), nothing.time_ids)

    def latents_spread(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What some autoencoders of the family say of it; of others, the identity."""
        config, names = self.pipeline.vae.config, ("latents_mean", "latents_std")
        if any(config.get(name) is None for name in names):
            return super().latents_spread()
        centre, spread = (torch.tensor(config[name], device=self.device).view(1, -1, 1, 1) for name in names)
        return centre, spread

    def _time_ids(self, count: int) -> torch.Tensor:
        size = float(self.image_size)
        return torch.tensor([[size, size, 0.0, 0.0, size, size]], device=self.device).repeat(count, 1)
