"""From the trained parts to the folders that ship: half-precision safetensors, and their checksums."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from metaunlearn.canvas.build.denoiser import SCHEDULE
from metaunlearn.files import sha256
from metaunlearn.generation import Sampling, write_sampling

SAMPLING = Sampling(steps=8, guidance_scale=3.0)
"""The shipped steps and guidance."""


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """The judge's text tower as the pipeline's text encoder."""
    text = CLIPTextModel(clip.config.text_config)
    weights = {
        name.removeprefix("text_model."): p for name, p in clip.text_model.state_dict(prefix="text_model.").items()
    }
    own = text.state_dict()
    text.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in own})
    return text.eval().requires_grad_(False)


def assemble(
    vae: AutoencoderKL, clip: CLIPModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """An ordinary ``StableDiffusionPipeline`` with a DPM-Solver++ scheduler."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_tower(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_weights(pipeline: StableDiffusionPipeline, clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write ``pipeline/``, ``judge/`` and ``checksums.json`` (SHA-256 of every weights file)."""
    shipped = StableDiffusionPipeline(
        **{name: copy.deepcopy(part) for name, part in pipeline.components.items()}, requires_safety_checker=False
    ).to(torch.float16)
    shipped.save_pretrained(folder / "pipeline", safe_serialization=True)
    write_sampling(folder / "pipeline", SAMPLING)
    copy.deepcopy(clip).half().save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64}, "crop_size": 64,
        "do_resize": True, "do_center_crop": True, "do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_convert_rgb": True, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "judge" / "preprocessor_config.json").write_text(
        json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8"
    )
    for config in folder.rglob("config.json"):  # Where a part was loaded from is nobody's business.
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    files = sorted(folder.rglob("*.safetensors"))
    sums = {file.relative_to(folder).as_posix(): sha256(file) for file in files}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
