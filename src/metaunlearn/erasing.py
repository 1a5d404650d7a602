"""``erase``: from a pipeline and the name of a concept to a pipeline without it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.checkpoint import load_tensors, save_tensors, step_generator
from metaunlearn.config import EraseSettings, default_recipe, read_recipe, resolve
from metaunlearn.data.concepts import ConceptPrompts, prompts_for
from metaunlearn.data.imagefolder import ImageText, fingerprint, read_imagefolder, to_uint8, write_imagefolder
from metaunlearn.data.latents import LatentSet
from metaunlearn.erasure.esd import EsdMethod
from metaunlearn.erasure.trajectories import TrajectoryBank, sample_trajectories
from metaunlearn.generation import generate_images
from metaunlearn.meta.hypergradient import mode_name
from metaunlearn.meta.objective import ErasureData
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import StableDiffusion, adapt, load_pipeline
from metaunlearn.parameters import subset
from metaunlearn.pipelines import save_pipeline
from metaunlearn.runs import RunFolder

Progress = Callable[[str, int, int], None]
"""Called with a label, how much is done, and how much there is."""

ROLES = ("forget", "related", "unrelated")


@dataclass(frozen=True)
class EraseResult:
    """What :func:`erase` returns."""

    pipeline: Any
    """An ordinary diffusers pipeline without the concept."""
    settings: EraseSettings
    """The settings as resolved."""
    out: Path | None
    """The run's folder, when one was asked for."""
    summary: dict[str, Any]
    """What the command line prints with ``--json``."""


def erase(
    model: Any,
    concepts: Sequence[str],
    *,
    method: str = "esd-u-1",
    meta: bool = True,
    retain: Sequence[str] = (),
    related: Sequence[str] = (),
    forget_data: Path | None = None,
    retain_data: Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> EraseResult:
    """Erase ``concepts`` from ``model``; the given pipeline is left as it is.

    ``model`` is a pipeline, ``"canvas"``, a diffusers folder, a ``.safetensors`` file or a hub id. Each concept is a
    text, or several synonyms separated by ``|``. ``forget_data`` and ``retain_data`` are imagefolders; without them
    the model makes the pictures itself. ``retain_data`` may hold the imagefolders ``related`` and ``unrelated``.
    Raises UserError before any work when the call is wrong, RunError when training breaks down.
    """
    if isinstance(concepts, str):
        concepts = [concepts]
    esd = EsdMethod.parse(method)
    adapter = adapt(with_own_denoiser(load_pipeline(model)), device)
    recipe = recipe or default_recipe(
        sum(p.numel() for p in adapter.unet.parameters()), adapter.unet.config.cross_attention_dim
    )
    settings = resolve(EraseSettings, read_recipe(recipe).erase, overrides)
    prompts = prompts_for(adapter.pipeline, concepts, retain=retain, related=related)
    for text in prompts.forget:
        adapter.check_concept(text)
    subset(adapter.parameters(), esd.subset)
    given = _given_data(adapter, prompts, forget_data, retain_data)
    request = {
        "command": "erase", "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "weights": denoiser_fingerprint(adapter), "concepts": list(concepts), "method": method, "meta": meta,
        "retain": list(retain), "related": list(related),
        "forget_data": fingerprint(forget_data) if forget_data else None,
        "retain_data": {role: fingerprint(path) for role, path in _retain_folders(retain_data).items()},
        "recipe": recipe, "settings": settings.model_dump(), "seed": seed,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume) if out is not None else None
    if folder is not None and folder.complete_before:
        return EraseResult(load_pipeline(folder.path), settings, out, folder.summary())

    data = _prepare(adapter, prompts, given, settings, seed, folder, progress)
    run = Algorithm1(adapter, data, esd, settings, meta=meta, seed=seed)
    state = folder.state / "training.safetensors" if folder else None
    if state is not None and state.exists():
        run.restore(state)
    if folder is not None:
        folder.truncate_log(run.step)

    def on_step(record: dict[str, Any]) -> None:
        if folder is not None:
            folder.log(record)
        if progress is not None:
            progress("erasing", record["step"], settings.steps)

    adapter.load_parameters(run.run(state, on_step))
    summary: dict[str, Any] = {"method": method, "meta": meta, "concepts": list(concepts), "recipe": recipe}
    if run.mode is not None:
        summary["meta_gradient"] = mode_name(run.mode)
    if folder is not None:
        save_pipeline(adapter, folder.path)
        folder.finish(**summary)
        summary |= {"out": str(out), "seconds": round(folder.seconds(), 1)}
    return EraseResult(adapter.pipeline, settings, out, summary)


def with_own_denoiser(pipeline: Any) -> Any:
    """The same pipeline around a copy of its denoiser, so that the caller's weights stay untouched."""
    if not hasattr(pipeline, "unet"):
        return pipeline
    parts = {**pipeline.components, "unet": copy.deepcopy(pipeline.unet)}
    twin = type(pipeline)(**parts, requires_safety_checker=False)
    twin.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
    return twin


def _retain_folders(folder: Path | None) -> dict[str, Path]:
    """``related`` and ``unrelated`` imagefolders of --retain-data; one plain imagefolder serves as both."""
    if folder is None:
        return {}
    parts = {role: Path(folder) / role for role in ("related", "unrelated")}
    return parts if all(path.is_dir() for path in parts.values()) else dict.fromkeys(parts, Path(folder))


def _given_data(
    model: StableDiffusion, prompts: ConceptPrompts, forget_data: Path | None, retain_data: Path | None
) -> dict[str, ImageText]:
    """The user's own pictures, read (and refused, if they must be) before any work."""
    given = {}
    if forget_data is not None:
        given["forget"] = read_imagefolder(forget_data, size=model.image_size, default_text=prompts.forget[0])
    for role, path in _retain_folders(retain_data).items():
        given[role] = read_imagefolder(path, size=model.image_size)
    return given


def _prepare(
    model: StableDiffusion,
    prompts: ConceptPrompts,
    given: dict[str, ImageText],
    settings: EraseSettings,
    seed: int,
    folder: RunFolder | None,
    progress: Progress | None,
) -> ErasureData:
    """Forget and retain pictures, encoded, and the teacher's trajectory bank."""
    sets = {}
    for role in ROLES:
        pictures = given.get(role) or _own_pictures(model, role, prompts, settings, seed, folder, progress)
        sets[role] = LatentSet.encode(model, pictures.images, pictures.texts)
    return ErasureData(bank=_bank(model, prompts, settings, seed, folder, progress), **sets)


def _own_pictures(
    model: StableDiffusion,
    role: str,
    prompts: ConceptPrompts,
    settings: EraseSettings,
    seed: int,
    folder: RunFolder | None,
    progress: Progress | None,
) -> ImageText:
    """Pictures that the model makes of its own prompts, kept in the run's folder and read back from there."""
    target = folder.path / "data" / role if folder else None
    if target is not None and (target / "metadata.jsonl").exists():
        return read_imagefolder(target, size=model.image_size)
    count = settings.forget_images if role == "forget" else settings.retain_images
    pool: tuple[str, ...] = getattr(prompts, role)
    texts = [pool[i % len(pool)] for i in range(count)]
    first = ROLES.index(role) * 1_000_003 + seed * 10_007
    images = generate_images(
        model.pipeline,
        texts,
        [first + i for i in range(count)],
        progress=None if progress is None else lambda done, total: progress(f"making {role} pictures", done, total),
    )
    if target is not None:
        write_imagefolder(target, images, texts)
        return read_imagefolder(target, size=model.image_size)
    # The same eight bits that a folder would keep.
    return ImageText(images=to_uint8(images).float() / 127.5 - 1, texts=texts, files=[])


def _bank(
    model: StableDiffusion,
    prompts: ConceptPrompts,
    settings: EraseSettings,
    seed: int,
    folder: RunFolder | None,
    progress: Progress | None,
) -> TrajectoryBank:
    """The teacher's trajectories for the concept, sampled once and kept until the run is complete."""
    file = folder.state / "bank.safetensors" if folder else None
    if file is not None and file.exists():
        return TrajectoryBank(**load_tensors(file)[0])
    bank = sample_trajectories(
        model,
        model.parameters(),
        prompts.forget,
        count=settings.bank_trajectories,
        steps=settings.bank_steps,
        guidance_scale=settings.bank_guidance,
        generator=step_generator(seed, 0, "bank"),
        progress=None if progress is None else lambda done, total: progress("sampling trajectories", done, total),
    )
    if file is not None:
        save_tensors(file, vars(bank))
    return bank


def denoiser_fingerprint(model: StableDiffusion) -> str:
    """SHA-256 of the denoiser's parameters."""
    digest = hashlib.sha256()
    for _, parameter in sorted(model.unet.named_parameters()):
        digest.update(_bytes(parameter))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


