"""The architectures of the published checkpoints, by their public configurations: shapes without weights.

For benchmarks and tests at true size. The keys are diffusers' and transformers'; what is not said is their default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One published model."""

    unet: dict[str, Any]
    """Of UNet2DConditionModel."""
    vae: dict[str, Any]
    """Of AutoencoderKL."""
    text_encoder: dict[str, Any]
    """Of CLIPTextModel."""
    text_encoder_2: dict[str, Any] = field(default_factory=dict)
    """Of CLIPTextModelWithProjection; empty: there is none."""

    def build_unet(self, device: str = "meta", **more: Any) -> UNet2DConditionModel:
        """The denoiser: on ``meta`` without memory, elsewhere with torch's random weights; ``more`` overrides."""
        with torch.device(device):
            return UNet2DConditionModel(**(self.unet | more))

    def build_vae(self, device: str = "meta") -> AutoencoderKL:
        """The autoencoder."""
        with torch.device(device):
            return AutoencoderKL(**self.vae)

    def build_text_encoders(self, device: str = "meta") -> list[Any]:
        """The text encoders, one or two."""
        with torch.device(device):
            encoders = [CLIPTextModel(CLIPTextConfig(**self.text_encoder))]
            if self.text_encoder_2:
                encoders.append(CLIPTextModelWithProjection(CLIPTextConfig(**self.text_encoder_2)))
        return encoders


_CROSS_DOWN, _CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_SD_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "layers_per_block": 2,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_OPENAI_CLIP: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77,
}  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    "sd14": Architecture(
        unet=_SD_UNET | {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
        vae=_VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        text_encoder=_OPENAI_CLIP,
    ),
    "sd21": Architecture(
        unet=_SD_UNET
        | {
            "sample_size": 96,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae=_VAE | {"sample_size": 768, "scaling_factor": 0.18215},
        # The second-last layer of OpenCLIP's 24 is what the UNet reads, so diffusers keeps 23.
        text_encoder=_OPENAI_CLIP
        | {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
            "hidden_act": "gelu", "projection_dim": 512,
        },
    ),
    "sdxl": Architecture(
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
            "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        text_encoder=_OPENAI_CLIP,
        text_encoder_2=_OPENAI_CLIP
        | {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
            "hidden_act": "gelu", "projection_dim": 1280,
        },
    ),
}  # fmt: skip
"""By the name of their recipe: Stable Diffusion 1.x, 2.1 (768 px) and XL base 1.0."""
