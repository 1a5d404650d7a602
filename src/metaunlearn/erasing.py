"""``erase``: from a pipeline and the name of a concept to a pipeline without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.config import EraseSettings, default_recipe, read_recipe, resolve
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.imagefolder import fingerprint
from metaunlearn.erasure.esd import EsdMethod
from metaunlearn.erasure.prepare import given_data, prepare, retain_folders
from metaunlearn.meta.hypergradient import mode_name
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import adapt, load_pipeline, with_own_denoiser
from metaunlearn.parameters import subset
from metaunlearn.pipelines import save_pipeline
from metaunlearn.runs import Progress, RunFolder


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
    recipe = recipe or default_recipe(adapter.parameter_count, adapter.text_width)
    settings = resolve(EraseSettings, read_recipe(recipe).erase, overrides)
    prompts = prompts_for(adapter.pipeline, concepts, retain=retain, related=related)
    for text in prompts.forget:
        adapter.check_concept(text)
    subset(adapter.parameters(), esd.subset)
    subset(adapter.parameters(), settings.inner_subset, setting="inner_subset")
    given = given_data(adapter, prompts, forget_data, retain_data)
    request = {
        "command": "erase", "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "weights": adapter.fingerprint(), "concepts": list(concepts), "method": method, "meta": meta,
        "retain": list(retain), "related": list(related),
        "forget_data": fingerprint(forget_data) if forget_data else None,
        "retain_data": {role: fingerprint(path) for role, path in retain_folders(retain_data).items()},
        "recipe": recipe, "settings": settings.model_dump(), "seed": seed,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume) if out is not None else None
    if folder is not None and folder.complete_before:
        return EraseResult(load_pipeline(folder.path), settings, out, folder.summary())

    data = prepare(adapter, prompts, given, settings, seed, folder, progress)
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
