"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet that cross-attends to it, a KL autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.errors import UserError
from metaunlearn.parameters import Params


class StableDiffusion:
    """A diffusers ``StableDiffusionPipeline`` as the equations see it. The pipeline stays usable on its own."""

    def __init__(self, pipeline: StableDiffusionPipeline, *, device: str | torch.device = "cpu") -> None:
        self.pipeline = pipeline.to(torch.device(device))
        if pipeline.unet.dtype != torch.float32:  # Training and its checks are written for float32.
            pipeline.to(torch.float32)
        self.device = torch.device(device)
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.eval().requires_grad_(False)

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule and prediction type, read from the pipeline's scheduler."""
        return NoiseSchedule.of(self.pipeline.scheduler)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        return self.pipeline.unet

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents that the pipeline samples by default."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_size(self) -> int:
        """Side of the pictures that the pipeline makes by default, in pixels."""
        return self.latent_shape[1] * self.pipeline.vae_scale_factor

    @property
    def parameter_count(self) -> int:
        """How many numbers theta has."""
        return sum(p.numel() for p in self.unet.parameters())

    @property
    def text_width(self) -> int:
        """D, the width of encoded prompts: 768 in Stable Diffusion 1.x, 1024 in 2.x."""
        width: int = self.unet.config.cross_attention_dim
        return width

    def fingerprint(self) -> str:
        """SHA-256 of the denoiser's parameters."""
        digest = hashlib.sha256()
        for _, parameter in sorted(self.unet.named_parameters()):
            digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def parameters(self) -> Params:
        """theta: a copy of every parameter of the denoiser."""
        return {name: p.detach().clone() for name, p in self.unet.named_parameters()}

    def load_parameters(self, theta: Params) -> None:
        """Write ``theta`` into the pipeline's denoiser."""
        with torch.no_grad():
            for name, parameter in self.unet.named_parameters():
                parameter.copy_(theta[name])

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The UNet's output under parameters ``theta``: (B, C, h, w)."""
        output: Tensor = functional_call(
            self.unet, theta, (x_t, t), {"encoder_hidden_states": cond, "return_dict": False}
        )[0]
        return output

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encoded prompts, (B, T, D); equal prompts are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        encoded = torch.cat(
            [
                self.pipeline.encode_prompt(distinct[i : i + 64], self.device, 1, False)[0]
                for i in range(0, len(distinct), 64)
            ]
        )
        return encoded[torch.tensor([distinct.index(prompt) for prompt in prompts])]

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

    def encode_tokens(self, ids: Tensor, psi: Params | None = None, *, looked_up: Tensor | None = None) -> Tensor:
        """Encoded prompts, (B, T, D), of token ids (B, T); differentiable, unlike :meth:`encode_prompts`.

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
        return encoded

    def last_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Where in an encoded prompt its last word's last token stands: 0, the start token, for an empty prompt."""
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(list(prompts), truncation=True, max_length=tokenizer.model_max_length).input_ids
        return [len(row) - 2 for row in ids]

    @torch.no_grad()
    def encode_images(self, images: Tensor, *, batch_size: int = 16) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, (B, C, h, w), of images (B, 3, H, W) in [-1, 1]."""
        scale = self.pipeline.vae.config.scaling_factor
        posteriors = [self.pipeline.vae.encode(chunk.to(self.device)).latent_dist for chunk in images.split(batch_size)]
        return scale * torch.cat([p.mean for p in posteriors]), scale * torch.cat([p.std for p in posteriors])

    def check_concept(self, concept: str) -> None:
        """Refuse a concept of which the tokenizer leaves nothing."""
        tokenizer = self.pipeline.tokenizer
        if not tokenizer(concept, add_special_tokens=False).input_ids:
            raise UserError(
                f"the concept {concept!r} tokenises to nothing, so no prompt can name it; "
                "give a word or phrase (concepts=[...], --concept TEXT)."
            )
