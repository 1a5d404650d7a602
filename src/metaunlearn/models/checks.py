"""Which pipelines can be worked with, and a message that says what is missing for those that cannot."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel

from metaunlearn.errors import UserError

FAMILIES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "StableDiffusionXLPipeline": (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
    ),
}  # fmt: skip
"""Pipeline classes with an adapter, and the components that each must have."""

TEXT = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
"""Who reads a prompt, and who is told."""

HANDLED = "Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) and XL (StableDiffusionXLPipeline)"
REFINER = (
    "MODEL is the refiner of Stable Diffusion XL: it only polishes what the base model drew and does not see most of a "
    "prompt, so nothing can be erased from it. Give the base model (stable-diffusion-xl-base-1.0), and publish it "
    "without a refiner, which still knows the concept."
)


def check_class(name: str) -> None:
    """Refuse a pipeline class that has no adapter; ``name`` may come from a ``model_index.json``."""
    if name in FAMILIES:
        return
    hint = ""
    if name.startswith("StableDiffusion") and any(word in name for word in ("Inpaint", "Img2Img", "Depth", "Upscale")):
        hint = " It starts from a picture; give the text-to-image pipeline that it was made from."
    raise UserError(f"MODEL is a {name}, which has no adapter; this release handles {HANDLED}.{hint}")


def check_pipeline(pipeline: Any) -> str:
    """The name of the pipeline's class, if everything is there that erasing needs; else UserError."""
    name = type(pipeline).__name__
    config = getattr(pipeline, "config", {})
    if "XL" in name and (config.get("requires_aesthetics_score") or getattr(pipeline, "text_encoder", True) is None):
        raise UserError(REFINER)
    check_class(name)
    missing = [part for part in FAMILIES[name] if getattr(pipeline, part, None) is None]
    if missing:
        raise UserError(
            f"MODEL, a {name}, has no {' and no '.join(missing)}; load it with all of {', '.join(FAMILIES[name])}."
        )
    for tokenizer, encoder in TEXT:
        _check_text(pipeline, tokenizer, encoder)
    _check_denoiser(pipeline.unet, pipeline.vae.config.latent_channels)
    _check_autoencoder(pipeline.vae.config)
    return name


def _check_text(pipeline: Any, tokenizer: str, encoder: str) -> None:
    if getattr(pipeline, tokenizer, None) is None:
        return
    tokens = len(getattr(pipeline, tokenizer))
    known = getattr(pipeline, encoder).get_input_embeddings().num_embeddings
    if tokens > known:
        raise UserError(
            f"MODEL's {tokenizer} has {tokens} tokens and its {encoder} knows {known}: they are not of one model."
        )


def _check_autoencoder(config: Any) -> None:
    channels = (config.in_channels, config.out_channels)
    if not set(channels) <= {1, 3}:
        raise UserError(
            f"MODEL's autoencoder takes pictures of {channels[0]} channels and gives pictures of {channels[1]}; "
            "expected 3 (RGB) or 1 (grey). Give a model of ordinary pictures."
        )


def _check_denoiser(unet: Any, latent_channels: int) -> None:
    if not isinstance(unet, UNet2DConditionModel):
        raise UserError(
            f"MODEL's denoiser is a {type(unet).__name__}; expected a UNet2DConditionModel, the class of {HANDLED}."
        )
    if not any("attn2.to_k." in name for name, _ in unet.named_parameters()):
        raise UserError(
            "MODEL's denoiser has no cross-attention (no attn2.to_k among its parameters), so no prompt reaches it and "
            "there is no concept to erase."
        )
    channels = unet.config.in_channels
    if channels != latent_channels:
        raise UserError(
            f"MODEL's denoiser takes {channels} channels but its latents have {latent_channels}: it is made for "
            "inpainting, depth or editing. Give the text-to-image model that it was made from."
        )
    if unet.config.time_cond_proj_dim is not None:
        raise UserError(
            "MODEL's denoiser is told the guidance scale (time_cond_proj_dim), as distilled models (LCM) are; give the "
            "model that it was distilled from."
        )
