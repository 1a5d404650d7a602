"""Pictures from a pipeline: picture i follows from its own prompt and seed.

What else is in its batch changes the order of floating-point sums, so at most the last of 255 levels. How large batches
are is a question of memory only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.fetching import SAMPLING_FILE
from metaunlearn.files import write_json
from metaunlearn.models.autoencoder import as_rgb, decoding
from metaunlearn.models.memory_format import channels_last
from metaunlearn.models.precision import Precision, denoising_in
from metaunlearn.models.unfiltered import unfiltered
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count

BATCH = 32
"""Pictures that go through a pipeline together, if they have at most ``SIDE`` x ``SIDE`` pixels."""
SIDE = 256
"""Larger pictures come in batches of as many pixels as ``BATCH`` of this side have."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are sampled when the caller does not say."""

    steps: int = 50
    """Steps of the pipeline's own scheduler."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is none."""


def default_sampling(pipeline: Any) -> Sampling:
    """The settings that the pipeline's folder names, else Stable Diffusion's usual ones."""
    folder = Path(str(getattr(pipeline.config, "_name_or_path", "") or pipeline.config.get("_name_or_path", "")))
    file = folder / SAMPLING_FILE
    return Sampling(**json.loads(file.read_text())) if folder.is_dir() and file.is_file() else Sampling()


def write_sampling(folder: Path, sampling: Sampling) -> None:
    """Record ``sampling`` in a pipeline's folder, unless it is the usual one."""
    if sampling != Sampling():
        write_json(folder / SAMPLING_FILE, asdict(sampling))


def picture_size(pipeline: Any) -> tuple[int, int]:
    """Height and width in pixels of the pictures that ``pipeline`` draws by default."""
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def pictures_at_once(pipeline: Any, wanted: int | None = None) -> int:
    """How many pictures go through ``pipeline`` together: ``wanted``, else by their pixels."""
    height, width = picture_size(pipeline)
    return wanted or max(1, min(BATCH, BATCH * SIDE**2 // (height * width)))


@torch.no_grad()
def generate_images(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    precision: Precision = "float32",
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """One picture for each (prompt, seed): (N, 3, H, W) in [0, 1], on the CPU, past the pipeline's safety checker.

    ``batch_size`` of them go through the pipeline together; None: as many as :func:`pictures_at_once` says. The
    denoiser's products are in ``precision``. Of several ``processes`` each makes its share of the batches, and all get
    all of them.
    """
    defaults = default_sampling(pipeline)
    at_once, (height, width) = pictures_at_once(pipeline, batch_size), picture_size(pipeline)
    pipeline.set_progress_bar_config(disable=True)

    def batch(number: int) -> dict[str, Tensor]:
        first = number * at_once
        rows = slice(first, first + at_once)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
        output = pipeline(
            list(prompts[rows]),
            height=height,  # Said, because XL's pipeline takes whatever it draws by default for square.
            width=width,
            num_inference_steps=steps or defaults.steps,
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
            generator=generators,
            output_type="pt",
        )
        if progress is not None:
            progress(min(first + at_once, len(prompts)), len(prompts))
        return {"images": as_rgb(output.images.float().cpu())}

    together = min(at_once, len(prompts))
    with (
        unfiltered(pipeline),
        channels_last([pipeline.unet, pipeline.vae]),
        decoding(pipeline.vae, together, height * width),
        denoising_in(pipeline.unet, precision),
    ):
        batches = processes.each(-(-len(prompts) // at_once), batch)
    return torch.cat([made["images"] for made in batches])
