"""The data of an erasing run: the user's pictures or the model's own, encoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from metaunlearn.config import EraseSettings, Of, settings_of
from metaunlearn.data.concepts import ConceptPrompts
from metaunlearn.data.imagefolder import ImageText, centre_square, read_imagefolder, to_uint8, write_imagefolder
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.generation import generate_images
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import Progress, RunFolder, labelled

ROLES = ("forget", "related", "unrelated")
PICTURE_SETTINGS = settings_of(Of.PICTURES)
"""Keys of :class:`~metaunlearn.config.EraseSettings` that say which pictures the model makes of itself."""
PER_PROMPT = 8
"""At most so many retained pictures of one prompt: more of them cost time and show little that is new."""


def retain_folders(folder: Path | None) -> dict[str, Path]:
    """``related`` and ``unrelated`` imagefolders of --retain-data; one plain imagefolder serves as both."""
    if folder is None:
        return {}
    parts = {role: Path(folder) / role for role in ("related", "unrelated")}
    return parts if all(path.is_dir() for path in parts.values()) else dict.fromkeys(parts, Path(folder))


def given_data(
    model: TextToImageModel, prompts: ConceptPrompts, forget_data: Path | None, retain_data: Path | None
) -> dict[str, ImageText]:
    """The user's own pictures, read (and refused, if they must be) before any work."""
    given = {}
    if forget_data is not None:
        given["forget"] = read_imagefolder(forget_data, size=model.image_size, default_text=prompts.forget[0])
    for role, path in retain_folders(retain_data).items():
        given[role] = read_imagefolder(path, size=model.image_size)
    return given


def own_picture_counts(prompts: ConceptPrompts, settings: EraseSettings) -> dict[str, int]:
    """How many pictures MODEL makes of itself for each role that is not given to it."""
    retained = {role: min(settings.retain_images, PER_PROMPT * len(getattr(prompts, role))) for role in ROLES[1:]}
    return {"forget": max(settings.forget_images, len(prompts.of_concept))} | retained


def prepare(
    model: TextToImageModel,
    prompts: ConceptPrompts,
    given: dict[str, ImageText],
    settings: EraseSettings,
    seed: int,
    folder: RunFolder | None,
    progress: Progress | None,
    *,
    processes: Processes = ALONE,
) -> ErasureData:
    """Forget and retain pictures, encoded."""
    sets = {}
    for role in ROLES:
        kept = folder.path / "data" / role if folder else None
        pictures = given.get(role) or own_pictures(
            model, role, prompts, settings, seed, kept, progress, processes=processes
        )
        sets[role] = LatentSet.encode(model, pictures.images, pictures.texts)
    if settings.retain_dropout > 0:
        empty = model.unconditional()
        for role in ROLES[1:]:
            sets[role] = replace(sets[role], empty=empty, dropout=settings.retain_dropout)
    return ErasureData(**sets)


def own_pictures(
    model: TextToImageModel,
    role: str,
    prompts: ConceptPrompts,
    settings: EraseSettings,
    seed: int,
    target: Path | None,
    progress: Progress | None,
    *,
    processes: Processes = ALONE,
) -> ImageText:
    """Pictures of one of ``ROLES`` that the model makes itself, kept in the imagefolder ``target`` if there is one."""
    if target is not None and processes.on_main((target / "metadata.jsonl").exists):
        return read_imagefolder(target, size=model.image_size)
    pool: tuple[str, ...] = getattr(prompts, role)
    count = own_picture_counts(prompts, settings)[role]
    texts = [pool[i % len(pool)] for i in range(count)]
    first = ROLES.index(role) * 1_000_003 + seed * 10_007
    images = generate_images(
        model.pipeline,
        texts,
        [first + i for i in range(count)],
        guidance_scale=settings.forget_guidance if role == "forget" else settings.retain_guidance,
        batch_size=settings.picture_batch,
        progress=labelled(progress, f"making {role} pictures"),
        processes=processes,
    )
    if target is not None:
        processes.on_main(lambda: write_imagefolder(target, images, texts))
        return read_imagefolder(target, size=model.image_size)
    # The same eight bits that a folder would keep, and the same square of them.
    square = centre_square(to_uint8(images), model.image_size)
    return ImageText(images=square.float() / 127.5 - 1, texts=texts, files=[])
