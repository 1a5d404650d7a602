"""Which pictures to make: each a prompt, a seed and a guidance scale with nothing left open; and making them.

Pictures are made batch by batch and never all held: a set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from metaunlearn.data.imagefolder import is_intact, picture_file, write_captions, write_pictures
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import RunError, UserError
from metaunlearn.files import write_atomic
from metaunlearn.generation import Sampling, drawn_guidance, generate_images, pictures_at_once, sampling_asked
from metaunlearn.models.precision import Precision
from metaunlearn.models.prompt_length import warn_of_too_long
from metaunlearn.precision_names import ShortName
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Count
from metaunlearn.settings import Settings


class DrawSettings(Settings):
    """How pictures are drawn, not which: memory and time. What ``--set`` of ``generate`` and ``evaluate`` knows."""

    picture_batch: int | None = Field(default=None, gt=0)
    """Pictures that go through the model together; None: 32, fewer of more than 256 x 256 pixels."""
    precision: Annotated[Precision, ShortName] = "float32"
    """Of the products inside the denoiser; the autoencoder and the text encoders stay as they are."""


AS_IT_IS = DrawSettings()
"""In float32, in batches by the size of the pictures."""


@dataclass(frozen=True, kw_only=True)
class Depicted:
    """What a picture should show."""

    text: str
    label: str | None = None
    """What a judge should see in it."""
    role: str | None = None
    """Which part of a benchmark it belongs to; see :mod:`metaunlearn.metrics.unlearncanvas`."""


@dataclass(frozen=True, kw_only=True)
class Draw(Depicted):
    """One picture to make."""

    seed: int
    guidance_scale: float


def check_asked(*, images: int, steps: int | None, guidance_scale: float | None) -> None:
    """UserError for numbers with which nothing can be drawn; before a model is loaded."""
    for option, number in (("images_per_prompt=, --images", images), ("steps=, --steps", steps)):
        if number is not None and number < 1:
            raise UserError(f"Expected at least 1 ({option}), got {number}.")
    if guidance_scale is not None:
        drawn_guidance(guidance_scale)


def sampling_of(
    pipeline: Any, prompts: Sequence[Prompt], *, steps: int | None, guidance_scale: float | None
) -> tuple[Sampling, Sequence[Prompt]]:
    """How ``pipeline`` draws ``prompts`` where the call says how, else as by default; and the prompts.

    A ``guidance_scale`` that is given replaces each prompt's own: the prompts that are returned have none. Prompts that
    are longer than what ``pipeline`` reads are warned of; UserError when it cannot take so many ``steps``.
    """
    sampling = sampling_asked(pipeline, steps=steps, guidance_scale=guidance_scale)
    warn_of_too_long(pipeline, [prompt.text for prompt in prompts])
    if guidance_scale is not None:
        prompts = [replace(prompt, guidance_scale=None) for prompt in prompts]
    return sampling, prompts


def draws_for(prompts: Sequence[Prompt], *, images: int, seed: int, guidance_scale: float) -> list[Draw]:
    """``images`` draws of each prompt, in order.

    Draw j of prompt i has the prompt's own seed + j, or ``seed`` + i * ``images`` + j; the prompt's own guidance goes
    before ``guidance_scale``.
    """
    return [
        Draw(
            text=prompt.text,
            seed=(seed + i * images if prompt.seed is None else prompt.seed) + j,
            guidance_scale=drawn_guidance(guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale),
            label=prompt.label,
            role=prompt.role,
        )
        for i, prompt in enumerate(prompts)
        for j in range(images)
    ]


def batches(pipeline: Any, draws: Sequence[Draw], settings: DrawSettings = AS_IT_IS) -> list[list[int]]:
    """Indices of draws that go through ``pipeline`` together: it takes one guidance scale at a time."""
    size = pictures_at_once(pipeline, settings.picture_batch)
    by_guidance: dict[float, list[int]] = {}
    for index, draw in enumerate(draws):
        by_guidance.setdefault(draw.guidance_scale, []).append(index)
    return [indices[first : first + size] for indices in by_guidance.values() for first in range(0, len(indices), size)]


def draw_batch(
    pipeline: Any,
    draws: Sequence[Draw],
    batch: Sequence[int],
    *,
    steps: int | None = None,
    settings: DrawSettings = AS_IT_IS,
) -> Tensor:
    """The pictures of one of :func:`batches`, (B, 3, H, W) in [0, 1]; RunError when the model makes no finite ones."""
    images = generate_images(
        pipeline,
        [draws[index].text for index in batch],
        [draws[index].seed for index in batch],
        steps=steps,
        guidance_scale=draws[batch[0]].guidance_scale,
        batch_size=len(batch),
        precision=settings.precision,
    )
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise RunError(f"{broken} of {len(images)} generated images are not finite numbers: the model is damaged.")
    return images


def draw_into(
    folder: Path,
    pipeline: Any,
    draws: Sequence[Draw],
    *,
    finished: Path,
    steps: int | None = None,
    settings: DrawSettings = AS_IT_IS,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> list[Path]:
    """Make ``folder`` an imagefolder of ``draws``, batch by batch; returns its pictures' files.

    The folder ``finished`` keeps which batches are written, so that a run that was killed goes on; a batch of which a
    picture has gone since is drawn again. It must not be shared by other draws. Of several ``processes`` each draws and
    writes its share of the batches.
    """
    planned = batches(pipeline, draws, settings)
    mine = {number: planned[number] for number in processes.turns(len(planned))}
    done, total = 0, sum(map(len, mine.values()))
    for number, batch in mine.items():
        written = finished / f"{number:05d}"
        if not (written.exists() and all(is_intact(picture_file(folder, index)) for index in batch)):
            write_pictures(folder, draw_batch(pipeline, draws, batch, steps=steps, settings=settings), batch)
            write_atomic(written, "")
        done += len(batch)
        if progress is not None:
            progress(done, total)
    processes.wait()
    files = [picture_file(folder, index) for index in range(len(draws))]
    processes.on_main(lambda: write_captions(folder, files, [draw.text for draw in draws]))
    return files
