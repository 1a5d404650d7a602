"""Pictures from a pipeline: picture i follows from its own prompt and seed.

What else is in its batch changes the order of floating-point sums, so at most the last of 255 levels. How large batches
are is a question of memory only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.data.prompts import PromptsGiven, prompts_of
from metaunlearn.errors import UserError
from metaunlearn.fetching import SAMPLING_FILE
from metaunlearn.files import read_json, write_json
from metaunlearn.guidance import as_drawn
from metaunlearn.models.autoencoder import as_rgb, decoding
from metaunlearn.models.loading import load_pipeline
from metaunlearn.models.memory_format import channels_last
from metaunlearn.models.precision import denoising_in, precision_named
from metaunlearn.models.sampling_steps import check_sampling_steps, possible_steps
from metaunlearn.models.unfiltered import scheduler_kept, unfiltered, without_bar
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count
from metaunlearn.settings import whole_number

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

    def __post_init__(self) -> None:
        if whole_number(self.steps, "steps=") < 1:
            raise UserError(f"expected at least 1 step (steps=, --steps), got {self.steps}.")
        object.__setattr__(self, "guidance_scale", drawn_guidance(self.guidance_scale))


def drawn_guidance(scale: float) -> float:
    """:func:`~metaunlearn.guidance.as_drawn` of a call, whose ValueError is a UserError."""
    try:
        return as_drawn(scale)
    except ValueError as error:
        raise UserError(f"{error} (guidance_scale=, --guidance).") from None


_KEYS = [one.name for one in fields(Sampling)]


def default_sampling(pipeline: Any) -> Sampling:
    """The settings that the pipeline's folder names, else Stable Diffusion's usual ones, if its schedule has room."""
    folder = Path(str(getattr(pipeline.config, "_name_or_path", "") or pipeline.config.get("_name_or_path", "")))
    file = folder / SAMPLING_FILE
    if folder.is_dir() and file.is_file():
        return _read_sampling(file)
    return Sampling(steps=possible_steps(pipeline, Sampling.steps))


def _read_sampling(file: Path) -> Sampling:
    try:
        return Sampling(**read_json(file))
    except (TypeError, UserError):
        raise UserError(
            f"{file} does not say how to sample: expected an object with {' and '.join(_KEYS)} or one of them, a whole "
            "number of at least 1 and a finite one of at least 0."
        ) from None


def sampling_asked(pipeline: Any, *, steps: int | None, guidance_scale: float | None) -> Sampling:
    """The default of ``pipeline`` but for what is given; UserError when it cannot sample so."""
    usual = default_sampling(pipeline)
    found = Sampling(
        steps=usual.steps if steps is None else whole_number(steps, "steps="),
        guidance_scale=usual.guidance_scale if guidance_scale is None else guidance_scale,
    )
    check_sampling_steps(pipeline, found.steps)
    return found


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
    prompts: PromptsGiven,
    seeds: Sequence[int] | int,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """One picture for each (prompt, seed): (N, 3, H, W) in [0, 1], on the CPU, past the pipeline's safety checker.

    ``pipeline`` is one, or what :func:`~metaunlearn.models.load_pipeline` takes.
    ``batch_size`` of them go through the pipeline together; None: as many as :func:`pictures_at_once` says. The
    denoiser's products are in ``precision``. Of several ``processes`` each makes its share of the batches, and all get
    all of them. UserError when there are no prompts, or not one seed for each.
    """
    pipeline = load_pipeline(pipeline)
    texts = [prompt.text for prompt in prompts_of(prompts)]
    seeds = [whole_number(seed, "seeds=") for seed in ([seeds] if isinstance(seeds, int | Integral) else seeds)]
    if not texts or len(texts) != len(seeds):
        raise UserError(f"expected at least one prompt and a seed for each, got {len(texts)} and {len(seeds)}.")
    products = precision_named(precision)
    sampling = sampling_asked(pipeline, steps=steps, guidance_scale=guidance_scale)
    at_once, (height, width) = pictures_at_once(pipeline, batch_size), picture_size(pipeline)

    def batch(number: int) -> dict[str, Tensor]:
        first = number * at_once
        rows = slice(first, first + at_once)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
        output = pipeline(
            texts[rows],
            height=height,  # Said, because XL's pipeline takes whatever it draws by default for square.
            width=width,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            generator=generators,
            output_type="pt",
        )
        if progress is not None:
            progress(min(first + at_once, len(texts)), len(texts))
        return {"images": as_rgb(output.images.float().cpu())}

    together = min(at_once, len(texts))
    with (
        unfiltered(pipeline),
        without_bar(pipeline),
        scheduler_kept(pipeline),
        channels_last([pipeline.unet, pipeline.vae]),
        decoding(pipeline.vae, together, height * width),
        denoising_in(pipeline.unet, products),
    ):
        batches = processes.each(-(-len(texts) // at_once), batch)
    return torch.cat([made["images"] for made in batches])
