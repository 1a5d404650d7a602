"""Tiny models in the true classes, saved locally, for the metrics that bring their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

from metaunlearn.canvas.build.tokenizer import build_tokenizer

CHECKER_SIZE = 16
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]


def new_checker() -> StableDiffusionSafetyChecker:
    """A safety checker of random weights for 16 x 16 images, whose thresholds flag some random pictures."""
    config = CLIPConfig(
        projection_dim=8,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "image_size": CHECKER_SIZE,
            "patch_size": 8,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        checker = StableDiffusionSafetyChecker(config)
        checker.concept_embeds.data = torch.randn(17, 8)
        checker.special_care_embeds.data = torch.randn(3, 8)
        checker.concept_embeds_weights.data = torch.full((17,), 0.7)
        checker.special_care_embeds_weights.data = torch.full((3,), 0.6)
    return checker.eval()


def save_checker(folder: Path) -> Path:
    """A folder as a pipeline has it: safety_checker and feature_extractor."""
    new_checker().save_pretrained(folder / "safety_checker", safe_serialization=True)
    extractor = folder / "feature_extractor"
    extractor.mkdir(parents=True)
    size = {"size": {"shortest_edge": CHECKER_SIZE}, "crop_size": CHECKER_SIZE, "image_mean": MEAN, "image_std": STD}
    (extractor / "preprocessor_config.json").write_text(json.dumps(size))
    return folder


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel for 32 x 32 images."""
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = CLIPTextConfig(
        **shared,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shared, image_size=32, patch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()


def save_clip(folder: Path) -> Path:
    """A judge's folder: that CLIPModel, Canvas's tokenizer, and how images are scaled."""
    tokenizer = build_tokenizer()
    new_clip(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return folder


def save_classifier(folder: Path, labels: Sequence[str]) -> Path:
    """A judge's folder: an untrained ViT for 16 x 16 images that knows ``labels``."""
    config = ViTConfig(
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        num_hidden_layers=1,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(labels)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    write_preprocessor(folder, size={"height": 16, "width": 16}, resample=2)
    return folder


def write_preprocessor(folder: Path, **keys: object) -> None:
    """``preprocessor_config.json`` with these keys beside the usual ones."""
    config = {"image_mean": MEAN, "image_std": STD, "resample": 3, **keys}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def head_tensors(width: int = 3) -> dict[str, Tensor]:
    """A tiny laion-nsfw-l14 head on features of ``width``."""
    generator = torch.Generator().manual_seed(0)
    sizes = [width, 4, 6, 5, 1]
    tensors = {}
    for number, (before, after) in enumerate(pairwise(sizes), start=1):
        tensors[f"linear_{number}.weight"] = torch.randn(after, before, generator=generator)
        tensors[f"linear_{number}.bias"] = torch.randn(after, generator=generator)
    tensors["norm.mean"] = torch.rand(width, generator=generator)
    tensors["norm.variance"] = torch.rand(width, generator=generator) + 0.5
    return tensors
