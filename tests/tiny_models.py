"""Tiny Stable Diffusion pipelines with random weights in the true module classes: 1.x, 2.x and XL.

They differ where the real ones do, in what code might take for granted: text width, number of tokens, picture size,
prediction type, scheduler, linear or convolutional projections, one text encoder or two.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from metaunlearn.canvas.build.tokenizer import build_tokenizer

SIZES = {"sd1": 16, "sd2": 24, "sdxl": 16}
"""Pixels a side of each pipeline's pictures."""
UNET = {
    "layers_per_block": 1,
    "block_out_channels": (16, 16),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def new_sd1() -> StableDiffusionPipeline:
    """Epsilon, DDIM, 24 tokens of width 16, 4 x 8 x 8 latents of 16 x 16 pictures."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(text_config(tokenizer, 16, layers=1))
        vae = new_vae(SIZES["sd1"])
        unet = UNet2DConditionModel(
            sample_size=SIZES["sd1"] // 2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            **UNET,
        )
    return new_sd(unet, vae, text_encoder, tokenizer, DDIMScheduler(clip_sample=False, steps_offset=1))


def new_sd2(prediction_type: str = "v_prediction") -> StableDiffusionPipeline:
    """v-prediction, Euler, 20 tokens of width 32, linear projections, 4 x 12 x 12 latents of 24 x 24 pictures."""
    tokenizer = shorter(build_tokenizer(), 20)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text_encoder = CLIPTextModel(text_config(tokenizer, 32, layers=2, hidden_act="gelu"))
        vae = new_vae(SIZES["sd2"])
        unet = UNet2DConditionModel(
            sample_size=SIZES["sd2"] // 2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            use_linear_projection=True,
            **UNET,
        )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return new_sd(unet, vae, text_encoder, tokenizer, scheduler)


def new_sdxl() -> StableDiffusionXLPipeline:
    """Epsilon, Euler, 16 tokens of width 8 + 16, pooled width 12, two transformer layers, 16 x 16 pictures."""
    tokenizer = shorter(build_tokenizer(), 16)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        first = CLIPTextModel(text_config(tokenizer, 8, layers=2))
        second = CLIPTextModelWithProjection(text_config(tokenizer, 16, layers=2, hidden_act="gelu", projection_dim=12))
        vae = new_vae(SIZES["sdxl"], scaling_factor=0.13)
        unet = UNet2DConditionModel(
            sample_size=SIZES["sdxl"] // 2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=24,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
            **UNET,
        )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet.eval(),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        add_watermarker=False,
    )


def with_unet(make: Any = new_sd1, **options: Any) -> Any:
    """A tiny pipeline, of 1.x unless ``make`` is given, with a random denoiser of other options."""
    pipeline = make()
    own = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipeline.unet = UNet2DConditionModel.from_config({**own, **options})
    return pipeline


NEW: dict[str, Any] = {"sd1": new_sd1, "sd2": new_sd2, "sdxl": new_sdxl}


def new_vae(size: int, **more: Any) -> AutoencoderKL:
    """1,000 parameters; one down-sampling."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
        **more,
    ).eval()


def text_config(tokenizer: CLIPTokenizer, width: int, *, layers: int, **more: Any) -> CLIPTextConfig:
    """A CLIP text encoder of this width for this tokenizer."""
    return CLIPTextConfig(
        **{
            "hidden_size": width,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": layers,
            "projection_dim": 16,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **more,
        }
    )


def shorter(tokenizer: CLIPTokenizer, length: int) -> CLIPTokenizer:
    """The same tokenizer for at most ``length`` tokens."""
    tokenizer.model_max_length = length
    return tokenizer


def new_sd(unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> StableDiffusionPipeline:
    """Without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
