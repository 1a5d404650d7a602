"""Which pipelines can be worked with, and a message that says what is missing for those that cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, ConsistencyDecoderVAE, UNet2DConditionModel
from transformers import CLIPTextModelWithProjection

from metaunlearn.errors import UserError
from metaunlearn.models.check_scheduler import check_scheduler

FAMILIES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    "StableDiffusionXLPipeline": (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
    ),
}  # fmt: skip
"""Pipeline classes with an adapter, and the components that each must have."""

TEXT = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
"""Who reads a prompt, and who is told."""
TOKENIZERS = tuple(tokenizer for tokenizer, _ in TEXT)

LONGEST = 100_000
"""Tokens of a prompt at most; a tokenizer that knows no length says 10^30."""

DRAWN_IN = 8
"""What divides the sides of every picture that these pipelines draw."""

TIME_IDS = 6
"""Sizes that XL's denoiser is told: original height and width, top and left of the crop, target height and width."""

AUTOENCODERS = (AutoencoderKL, AsymmetricAutoencoderKL, ConsistencyDecoderVAE)
"""Those whose encoder gives a distribution."""

HANDLED = "Stable Diffusion 1.x and 2.x (StableDiffusionPipeline) and XL (StableDiffusionXLPipeline)"
REFINER = (
    "MODEL is the refiner of Stable Diffusion XL: it only polishes what the base model drew and does not see most of a "
    "prompt, so nothing can be erased from it. Give the base model (stable-diffusion-xl-base-1.0), and publish it "
    "without a refiner, which still knows the concept."
)


FUSE = "fuse it first (pipeline.fuse_lora(), then pipeline.unload_lora_weights())"
"""What to do about an adapter, which nothing here erases or saves."""


def is_refiner(name: str, *, aesthetics: Any, text_encoder: Any) -> bool:
    """Whether a pipeline of the class ``name`` refines what another drew.

    It is told how beautiful that should be (``aesthetics``), or starts from a picture without a first ``text_encoder``.
    """
    return "XL" in name and bool(aesthetics or ("Img2Img" in name and text_encoder is None))


def check_class(name: str) -> None:
    """Refuse a pipeline class that has no adapter; ``name`` may come from a ``model_index.json``."""
    if name in FAMILIES:
        return
    hint = " Give the folder of one of its checkpoints." if name == "AttackResult" else ""
    if name.startswith("StableDiffusion") and any(word in name for word in ("Inpaint", "Img2Img", "Depth", "Upscale")):
        hint = " It starts from a picture; give the text-to-image pipeline that it was made from."
    raise UserError(f"MODEL is a {name}, which has no adapter; this release handles {HANDLED}.{hint}")


def check_pipeline(pipeline: Any) -> str:
    """The name of the pipeline's class, if everything is there that erasing needs; else UserError."""
    name = type(pipeline).__name__
    config = getattr(pipeline, "config", {})
    first = getattr(pipeline, "text_encoder", None)
    if is_refiner(name, aesthetics=config.get("requires_aesthetics_score"), text_encoder=first):
        raise UserError(REFINER)
    check_class(name)
    missing = [part for part in FAMILIES[name] if getattr(pipeline, part, None) is None]
    if missing:
        raise UserError(lacking(name, missing))
    for tokenizer, encoder in TEXT:
        _check_text(pipeline, tokenizer, encoder)
    _check_denoiser(pipeline.unet, pipeline.vae.config.latent_channels)
    _check_adapters(pipeline)
    _check_sides(pipeline.unet.config.sample_size, pipeline.vae_scale_factor)
    _check_told(pipeline.unet, xl="XL" in name)
    _check_width(pipeline)
    if "XL" in name:
        _check_two_encoders(pipeline)
    _check_autoencoder(pipeline.vae)
    check_scheduler(pipeline.scheduler)
    return name


def lacking(name: str, missing: Sequence[str]) -> str:
    """That a pipeline of the class ``name`` has no such components, in words."""
    return f"MODEL, a {name}, has no {' and no '.join(missing)}; load it with all of {', '.join(FAMILIES[name])}."


def check_channels(taken: int, latent_channels: int) -> None:
    """Refuse a denoiser that is given more than a picture's latents."""
    if taken != latent_channels:
        raise UserError(
            f"MODEL's denoiser takes {taken} channels but its latents have {latent_channels}: it is made for "
            "inpainting, depth or editing. Give the text-to-image model that it was made from."
        )


def _check_text(pipeline: Any, tokenizer: str, encoder: str) -> None:
    if getattr(pipeline, tokenizer, None) is None:
        return
    tokens = len(getattr(pipeline, tokenizer))
    known = getattr(pipeline, encoder).get_input_embeddings().num_embeddings
    if tokens > known:
        raise UserError(
            f"MODEL's {tokenizer} has {tokens} tokens and its {encoder} knows {known}: they are not of one model, or a "
            "token was added without its row (text_encoder.resize_token_embeddings)."
        )
    length = getattr(pipeline, tokenizer).model_max_length
    if length > LONGEST:
        raise UserError(
            f"MODEL's {tokenizer} does not say where it cuts prompts (model_max_length in its tokenizer_config.json): "
            "set it to the number of tokens that the model was trained with, 77 for a CLIP."
        )
    places = getattr(getattr(pipeline, encoder).config, "max_position_embeddings", length)
    if length > places:
        raise UserError(
            f"MODEL's {tokenizer} cuts prompts at {length} tokens and its {encoder} has places for {places}: set the "
            f"tokenizer's model_max_length to {places}."
        )


def widths_read(unet: UNet2DConditionModel) -> list[int]:
    """How many numbers a token has that the denoiser takes: one width, unless its layers disagree."""
    if unet.config.encoder_hid_dim is not None:
        return [unet.config.encoder_hid_dim]
    return sorted({p.shape[1] for name, p in unet.named_parameters() if name.endswith("attn2.to_k.weight")})


def _check_width(pipeline: Any) -> None:
    encoders = [getattr(pipeline, encoder) for _, encoder in TEXT if getattr(pipeline, encoder, None) is not None]
    width, expected = sum(encoder.config.hidden_size for encoder in encoders), widths_read(pipeline.unet)
    if expected != [width]:
        raise UserError(
            f"MODEL's text encoders give {width} numbers a token and its denoiser takes "
            f"{' and '.join(map(str, expected))}: they are not of one model."
        )


def _check_two_encoders(pipeline: Any) -> None:
    """Of XL: their tokens lie side by side, and the second one's embedding of the whole prompt goes beside sizes."""
    second, unet = pipeline.text_encoder_2, pipeline.unet.config
    if not isinstance(second, CLIPTextModelWithProjection):
        raise UserError(
            f"MODEL's text_encoder_2 is a {type(second).__name__}, which gives no embedding of the whole prompt; "
            "expected a CLIPTextModelWithProjection. Give the model with the text encoder that it was trained with."
        )
    lengths = [pipeline.tokenizer.model_max_length, pipeline.tokenizer_2.model_max_length]
    if lengths[0] != lengths[1]:
        raise UserError(
            f"MODEL's tokenizer cuts and fills prompts to {lengths[0]} tokens and its tokenizer_2 to {lengths[1]}, but "
            f"the denoiser reads their tokens side by side: set the model_max_length of both to {min(lengths)}."
        )
    pooled, sizes = second.config.projection_dim, TIME_IDS * (unet.addition_time_embed_dim or 0)
    if unet.addition_embed_type != "text_time" or pooled + sizes != unet.projection_class_embeddings_input_dim:
        raise UserError(
            f"MODEL's denoiser takes {unet.projection_class_embeddings_input_dim} numbers beside the tokens "
            f"(addition_embed_type={unet.addition_embed_type}); expected text_time and {pooled + sizes}: {pooled} of "
            f"its text_encoder_2's embedding of the prompt and {sizes} of sizes. They are not of one model: give the "
            "denoiser and the text encoders of the same one."
        )


def _check_autoencoder(vae: Any) -> None:
    config = vae.config
    if not isinstance(vae, AUTOENCODERS):
        raise UserError(
            f"MODEL's autoencoder is a {type(vae).__name__}; expected an AutoencoderKL. Give the model with the "
            "autoencoder that it was trained with, not with a small one for previews."
        )
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
    if any(".fuser." in name for name, _ in unet.named_parameters()):
        raise UserError(
            "MODEL's denoiser takes boxes beside its prompts (attention_type=gated, as GLIGEN's), which nothing here "
            "gives it. Give the text-to-image model that it was made from."
        )
    if unet.config.get("dual_cross_attention"):
        raise UserError(
            "MODEL's denoiser has two cross-attentions in each block (dual_cross_attention), which diffusers' own "
            "pipeline cannot run. Give a model of one."
        )
    if unet.config.sample_size is None:
        raise UserError(
            "MODEL's denoiser does not say how large its latents are (sample_size is None in unet/config.json): give "
            "it the side that it was trained at, 64 for pictures of 512 pixels."
        )
    check_channels(unet.config.in_channels, latent_channels)
    if unet.config.out_channels != unet.config.in_channels:
        raise UserError(
            f"MODEL's denoiser takes {unet.config.in_channels} channels and gives {unet.config.out_channels}: it says "
            "more than a prediction, such as how uncertain it is (learned variance), which nothing here trains. Give "
            "a model that predicts a latent's own channels."
        )
    if unet.config.time_cond_proj_dim is not None:
        raise UserError(
            "MODEL's denoiser is told the guidance scale (time_cond_proj_dim), as distilled models (LCM) are; give the "
            "model that it was distilled from."
        )


def _check_adapters(pipeline: Any) -> None:
    for name in ("unet", *(encoder for _, encoder in TEXT)):
        network = getattr(pipeline, name, None)
        if network is not None and any("lora_" in key for key, _ in network.named_parameters()):
            raise UserError(
                f"MODEL's {name} has an adapter (LoRA) beside its weights, which would neither be erased nor saved: "
                f"{FUSE}, or unload it."
            )


def _check_sides(latent: int | Sequence[int], pixels: int) -> None:
    """``latent``: height and width of the latents, or the side of square ones; ``pixels``: of a latent's, each way."""
    sides: list[Any] = [*latent] if isinstance(latent, list | tuple) else [latent]
    if len(sides) > 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(
            f"MODEL's denoiser says that its latents' side is {latent!r} (sample_size in unet/config.json): expected a "
            "whole number above 0, or two of them, height and width."
        )
    if any(side * pixels % DRAWN_IN for side in sides):
        least = DRAWN_IN // math.gcd(pixels, DRAWN_IN)
        fitting = [max(least, side - side % least) for side in sides]
        raise UserError(
            f"MODEL draws pictures of {' x '.join(str(side * pixels) for side in sides)} pixels, and its pipeline "
            f"takes sides that {DRAWN_IN} divides only: set sample_size in unet/config.json (pipeline.unet.config) to "
            f"{fitting[0] if isinstance(latent, int) else fitting}."
        )


def _check_told(unet: UNet2DConditionModel, *, xl: bool) -> None:
    """Refuse a denoiser that is told more than its pipeline has to say; XL's further numbers are counted elsewhere."""
    config = unet.config
    if unet.class_embedding is not None:
        raise UserError(
            "MODEL's denoiser also takes a class or a noise level for each picture (class_embed_type="
            f"{config.class_embed_type}, num_class_embeds={config.num_class_embeds}), which no prompt says. Give a "
            "model that is told its prompts alone."
        )
    if config.encoder_hid_dim_type not in (None, "text_proj"):
        raise UserError(
            "MODEL's denoiser also reads pictures beside its prompts (encoder_hid_dim_type="
            f"{config.encoder_hid_dim_type}), which nothing here gives it. Unload the adapter "
            "(pipeline.unload_ip_adapter()), or give a text-to-image model."
        )
    if not xl and config.addition_embed_type not in (None, "text"):
        raise UserError(
            f"MODEL's denoiser is told more than tokens (addition_embed_type={config.addition_embed_type}; expected "
            "None or text), but a StableDiffusionPipeline has nothing else to tell it. If it is a denoiser of XL, give "
            "the StableDiffusionXLPipeline that it is of."
        )
