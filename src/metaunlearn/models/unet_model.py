"""What the Stable Diffusion families share: a UNet2DConditionModel, a KL autoencoder, prompts in batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from metaunlearn.conditioning import Conditioning
from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.errors import UserError, shortened
from metaunlearn.models.autoencoder import as_taken, encoded_at_once
from metaunlearn.models.checks import widths_read
from metaunlearn.models.precision import DTYPES, Precision, autocast_predict
from metaunlearn.models.prompt_length import SHOWN, read_at_most, too_long
from metaunlearn.models.sharded import ShardedDenoiser
from metaunlearn.parameters import Params, digest
from metaunlearn.shards import whole

PROMPTS_AT_ONCE = 64


class UNetModel:
    """An adapter but for how prompts are encoded, which is each family's own."""

    family: str
    """Each adapter's own."""
    text_encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""
    tokenizers: tuple[str, ...]
    """Names of its tokenizers."""
    _autocast: torch.dtype | None = None
    """Precision of the products in ``predict``; None: that of the parameters."""
    _shards: ShardedDenoiser | None = None
    """What stands in for the pipeline's denoiser where the parameters are shared out over processes."""

    def __init__(self, pipeline: Any, *, device: str | torch.device = "cpu") -> None:
        self.pipeline = pipeline.to(torch.device(device))
        # Training and its checks are written for float32.
        if any(getattr(pipeline, name).dtype != torch.float32 for name in ("unet", "vae", *self.text_encoders)):
            pipeline.to(torch.float32)
        self.device = torch.device(device)
        for name in ("unet", "vae", *self.text_encoders):
            getattr(pipeline, name).eval().requires_grad_(False)

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
        """(C, h, w) of the latents that training uses; of a pipeline of oblong pictures, the shorter side's square."""
        size = self.unet.config.sample_size
        side = size if isinstance(size, int) else min(size)
        return self.unet.config.in_channels, side, side

    @property
    def image_size(self) -> int:
        """Side of the pictures that training uses, in pixels."""
        return self.latent_shape[1] * self.pipeline.vae_scale_factor

    @property
    def parameter_count(self) -> int:
        """How many numbers theta has."""
        return sum(p.numel() for p in self.unet.parameters())

    @property
    def parameter_names(self) -> list[str]:
        """The names of theta."""
        return [name for name, _ in self.unet.named_parameters()]

    @property
    def text_width(self) -> int:
        """D: 768 in Stable Diffusion 1.x, 1024 in 2.x, 2048 in XL."""
        return widths_read(self.unet)[0]

    def fingerprint(self) -> str:
        """SHA-256 of all parameters: those of the denoiser, the autoencoder and the text encoders."""
        parts = {name: getattr(self.pipeline, name) for name in ("unet", "vae", *self.text_encoders)}
        return digest({f"{name}.{key}": p for name, part in parts.items() for key, p in part.named_parameters()})

    def parameters(self) -> Params:
        """theta: a copy of every parameter of the denoiser, on the model's device wherever its own were set aside."""
        if self._shards is not None:
            return self._shards.parameters()
        return {name: p.detach().to(self.device, copy=True) for name, p in self.unet.named_parameters()}

    def load_parameters(self, theta: Params) -> None:
        """Write ``theta`` into the pipeline's denoiser."""
        with torch.no_grad():
            for name, parameter in self.unet.named_parameters():
                parameter.copy_(whole(theta[name]))

    def sharded(self, *, checkpointed: bool = False) -> Self:
        """The same model whose theta is in pieces, one in each process; the pipeline's denoiser goes to the host.

        ``checkpointed``: its blocks keep no activations.
        """
        self.pipeline.unet.to("cpu")
        twin = copy.copy(self)
        twin._shards = ShardedDenoiser(copy.deepcopy(self.unet), self.device, checkpointed=checkpointed)
        return twin

    def in_precision(self, precision: Precision) -> Self:
        """The same model, weights shared, whose ``predict`` has its products in ``precision``.

        In float32 it is itself, and in tf32, which whoever takes the gradient switches on (``float32_products``).
        """
        if precision in ("float32", "tf32"):
            return self
        twin = copy.copy(self)
        twin._autocast = DTYPES[precision]
        return twin

    def predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The UNet's output under parameters ``theta``: (B, C, h, w)."""
        if self._autocast is not None:
            return autocast_predict(self._predict, self._autocast, theta, x_t, t, cond)
        return self._predict(theta, x_t, t, cond)

    def _predict(self, theta: Params, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if self._shards is not None:
            return self._shards.predict(theta, x_t, t, cond.unet_inputs())
        output: Tensor = functional_call(self.unet, theta, (x_t, t), {**cond.unet_inputs(), "return_dict": False})[0]
        return output

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """B encoded prompts; equal prompts are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        chunks = [distinct[i : i + PROMPTS_AT_ONCE] for i in range(0, len(distinct), PROMPTS_AT_ONCE)]
        encoded = Conditioning.cat([self.encode_chunk(chunk) for chunk in chunks])
        return encoded[torch.tensor([distinct.index(prompt) for prompt in prompts])]

    def encode_chunk(self, prompts: list[str]) -> Conditioning:
        """A few distinct prompts, encoded: each family's own."""
        raise NotImplementedError

    def unconditional(self) -> Conditioning:
        """What the pipeline takes for no prompt: the empty text, where a family has nothing else."""
        return self.encode_prompts([""])

    def last_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Where in an encoded prompt its last word's last token stands: 0, the start token, for an empty prompt."""
        found = [_last_tokens(getattr(self.pipeline, name), prompts) for name in self.tokenizers]
        if any(other != found[0] for other in found[1:]):
            raise UserError(
                f"MODEL's tokenizers ({', '.join(self.tokenizers)}) cut {list(prompts)} into different numbers of "
                "tokens, so a token has no place of its own in their joined encoding; choose an optimised method "
                "(method=..., --method esd-x-1)."
            )
        return found[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, (B, C, h, w), of images (B, 3, H, W) in [-1, 1]."""
        vae = self.pipeline.vae
        chunks = images.split(encoded_at_once(images.shape[2] * images.shape[3]))
        posteriors = [vae.encode(as_taken(vae, chunk.to(self.device))).latent_dist for chunk in chunks]
        mean, std = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
        centre, spread = self.latents_spread()
        scale = vae.config.scaling_factor
        return scale * (mean - centre) / spread, scale * std / spread

    def latents_spread(self) -> tuple[Tensor, Tensor]:
        """Centre and spread of the autoencoder's latents by channel, (1, C, 1, 1), that the family's pipeline reads."""
        nothing = torch.zeros(1, 1, 1, 1, device=self.device)
        return nothing, nothing + 1

    def check_concept(self, concept: str) -> None:
        """Refuse a concept of which a tokenizer leaves nothing, or cuts off the end."""
        if too_long(self.pipeline, [concept]):
            raise UserError(
                f"the concept {shortened(concept, SHOWN)!r} is longer than the {read_at_most(self.pipeline)} tokens "
                "that MODEL reads, start and end included, so something else would be erased; name it in fewer words "
                "(concepts=[...], --concept TEXT)."
            )
        for name in self.tokenizers:
            tokenizer = getattr(self.pipeline, name)
            says_nothing = {tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
            if not {*tokenizer(concept, add_special_tokens=False).input_ids} - says_nothing:
                raise UserError(
                    f"the concept {concept!r} tokenises to nothing that the model knows, so no prompt can name it; "
                    "give a word or phrase (concepts=[...], --concept TEXT)."
                )


def _last_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[int]:
    ids = tokenizer(list(prompts), truncation=True, max_length=tokenizer.model_max_length).input_ids
    return [max(0, len(row) - 2) for row in ids]  # Some tokenizers begin without a start token.
