"""Stable Diffusion 1.x and 2.x: one text encoder, whose tokens the UNet's cross-attention reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from metaunlearn.conditioning import Conditioning
from metaunlearn.models.unet_model import UNetModel
from metaunlearn.parameters import Params


class StableDiffusion(UNetModel):
    """A diffusers ``StableDiffusionPipeline`` as the equations see it; also a ``TokenModel``.

    Shapes: B prompts, T text tokens, D text width.
    """

    family = "sd"
    text_encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)

    def encode_chunk(self, prompts: list[str]) -> Conditioning:
        """A few prompts, as the pipeline encodes them."""
        return Conditioning(self.pipeline.encode_prompt(prompts, self.device, 1, False)[0])

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, (B, T): start, words, end, padding; what exceeds the context is cut off."""
        tokenizer = self.pipeline.tokenizer
        ids: Tensor = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return ids.to(self.device)

    @property
    def token_table(self) -> Tensor:
        """What the text encoder looks tokens up in, (tokens, D)."""
        table: Tensor = self.pipeline.text_encoder.get_input_embeddings().weight
        return table

    def text_parameters(self) -> Params:
        """psi: a copy of every parameter of the text encoder."""
        return {name: p.detach().clone() for name, p in self.pipeline.text_encoder.named_parameters()}

    def load_text_parameters(self, psi: Params) -> None:
        """Write ``psi`` into the pipeline's text encoder."""
        with torch.no_grad():
            for name, parameter in self.pipeline.text_encoder.named_parameters():
                parameter.copy_(psi[name])

    def encode_tokens(self, ids: Tensor, psi: Params | None = None, *, looked_up: Tensor | None = None) -> Conditioning:
        """Encoded prompts of token ids (B, T); differentiable, unlike :meth:`encode_prompts`.

        ``psi`` are other parameters for the text encoder. ``looked_up``, (B, T, D), stands in for the rows of
        :attr:`token_table` that ``ids`` would look up.
        """
        encoder = self.pipeline.text_encoder
        # A hook rather than an argument: transformers' text encoders take no embeddings in place of ids.
        hook = None
        if looked_up is not None:
            hook = encoder.get_input_embeddings().register_forward_hook(lambda *_: looked_up)
        try:
            encoded: Tensor = functional_call(encoder, psi or {}, (ids,), {"return_dict": False})[0]
        finally:
            if hook is not None:
                hook.remove()
        return Conditioning(encoded)
