"""``attack``: what an abuser would do to a published model, with a checkpoint at every step that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.attacks.finetune import Finetuning
from metaunlearn.config import AttackSettings, default_recipe, read_recipe, resolve
from metaunlearn.data.imagefolder import fingerprint, read_imagefolder
from metaunlearn.data.latents import LatentSet
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.models import adapt, own_pipeline
from metaunlearn.models.memory import checkpointing
from metaunlearn.parameters import subset
from metaunlearn.pipelines import save_pipeline
from metaunlearn.runs import Progress, RunFolder

KINDS = ("finetune",)


@dataclass(frozen=True)
class AttackResult:
    """What :func:`attack` returns."""

    checkpoints: dict[int, Path]
    """A complete pipeline folder for each step that was asked for."""
    summary: dict[str, Any]
    """What the command line prints with ``--json``."""


def attack(
    model: Any,
    data: Path,
    *,
    kind: str = "finetune",
    steps: Sequence[int] = (0, 50, 100),
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    out: Path,
    resume: bool = False,
    progress: Progress | None = None,
) -> AttackResult:
    """Finetune ``model`` on the imagefolder ``data``; ``out/step-000050`` and so on are complete pipelines.

    Raises UserError before any work when the call is wrong, RunError when training breaks down.
    """
    if kind not in KINDS:
        raise UserError(
            f"unknown attack {kind!r} (kind=, --kind).{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}."
        )
    steps = _checked(steps)
    adapter = adapt(own_pipeline(model), device)
    recipe = recipe or default_recipe(adapter.parameter_count, adapter.text_width, adapter.family)
    settings = resolve(AttackSettings, read_recipe(recipe).attack, overrides)
    subset(adapter.parameter_names, settings.subset)
    pictures = read_imagefolder(data, size=adapter.image_size)
    request = {
        "command": "attack", "kind": kind,
        "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "weights": adapter.fingerprint(), "data": fingerprint(data), "steps": list(steps), "recipe": recipe,
        "settings": settings.model_dump(), "seed": seed,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume)
    checkpoints = {step: out / f"step-{step:06d}" for step in steps}
    if folder.complete_before:
        return AttackResult(checkpoints, folder.summary())

    latents = LatentSet.encode(adapter, pictures.images, pictures.texts)
    run = Finetuning(adapter, latents, settings, seed=seed)
    state = folder.state / "training.safetensors"
    if state.exists():
        run.restore(state)
    folder.truncate_log(run.step)

    def on_step(record: dict[str, Any]) -> None:
        folder.log(record)
        if progress is not None:
            progress("finetuning", record["step"], steps[-1])

    twin = None
    for step in steps:
        if step >= run.step:
            with checkpointing(adapter.unet, settings.gradient_checkpointing):
                theta = run.run_to(step, state, on_step)
            adapter.load_parameters(theta)
            save_pipeline(adapter, checkpoints[step], twin=twin)
            folder.describe(checkpoints[step], step=step)
        twin = checkpoints[step]
    save_pipeline(adapter, folder.path, twin=twin)
    summary: dict[str, Any] = {"kind": kind, "recipe": recipe, "steps": list(steps)}
    folder.finish(**summary, checkpoints=[path.name for path in checkpoints.values()])
    summary |= {"out": str(out), "checkpoints": {str(s): str(p) for s, p in checkpoints.items()}}
    return AttackResult(checkpoints, summary)


def _checked(steps: Sequence[int]) -> tuple[int, ...]:
    if not steps or any(step < 0 for step in steps) or list(steps) != sorted(set(steps)):
        raise UserError(
            "steps (steps=, --steps) must be whole numbers from 0 on, ascending, each once, e.g. 0,50,100; "
            f"got {list(steps)}."
        )
    return tuple(steps)
