"""Tiny models in the true classes, saved locally, for the metrics that bring their own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig

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
