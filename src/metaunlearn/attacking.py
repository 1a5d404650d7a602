"""``attack``: what an abuser would do to a published model, with a result at every step or strength asked for."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metaunlearn.attacks.brought import GROUP
from metaunlearn.attacks.given import Watched, check_components, checked_made, checked_training
from metaunlearn.attacks.interface import AttackTask, EditKind, TrainingKind
from metaunlearn.attacks.loop import Loop
from metaunlearn.attacks.registry import configure, folder_name, kind_of, known, needs, refuse_ignored
from metaunlearn.attacks.strip import Strip
from metaunlearn.data.imagefolder import fingerprint, read_imagefolder
from metaunlearn.data.wording import listed
from metaunlearn.errors import UserError
from metaunlearn.files import needed_path, path_of, sha256
from metaunlearn.models import adapt, device_for, own_pipeline, read_only
from metaunlearn.models.memory import checkpointing
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.pipelines import save_pipeline
from metaunlearn.processes import ALONE, Processes
from metaunlearn.recipe import read_recipe, recipe_for
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress, RunFolder, named
from metaunlearn.settings import whole_number
from metaunlearn.tracking import check_trackers

logger = logging.getLogger(__name__)

STEPS = (0, 50, 100)
"""Checkpoints of an attack that trains, unless the call or the recipe names others."""


@dataclass(frozen=True)
class AttackResult:
    """What :func:`attack` returns."""

    checkpoints: Mapping[float, Path]
    """The folder of each step, or of each strength, that was asked for: a complete pipeline, or pictures."""
    summary: dict[str, Any]
    """What the command line prints with ``--json``."""


def attack(
    model: Any,
    data: Path | str | None = None,
    *,
    kind: str = "finetune",
    steps: Sequence[int] | None = None,
    strengths: Sequence[float] | None = None,
    base: Any = None,
    strip: str | None = None,
    recipe: Path | str | None = None,
    overrides: Overrides = (),
    shared_overrides: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    out: Path | str,
    resume: bool = False,
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> AttackResult:
    """Attack ``model``; ``out/step-000050`` or ``out/strength-0.50`` and so on are complete results.

    An attack that trains takes the imagefolder ``data`` and ``steps`` (by default the recipe's, else 0, 50 and 100);
    one that does not takes ``strengths``, and ``data`` or the model before the erasing, ``base``, where it needs them.
    ``strip`` is a prompt: ``out/strip.png`` then shows its picture, of one seed, after each of the steps (paper,
    Figure 7). ``trackers`` (``tensorboard``, ``wandb``, ``trackio``) get what a training writes to ``out/log.jsonl``.
    What ``overrides`` say and this attack would not read is refused, unless they are ``shared_overrides``, said to
    other attacks as well.
    ``processes`` that :func:`~metaunlearn.processes.join` connected share a training, each making this same call.
    ``device`` is as for :func:`~metaunlearn.erasing.erase`.
    Raises UserError before any work when the call is wrong, RunError when training breaks down.
    """
    data, out, seed = path_of(data), needed_path(out, "out=, --out DIR"), whole_number(seed, "seed=, --seed")
    overrides, trackers = as_overrides(overrides), listed(trackers)
    known(kind)
    check_trackers(trackers)
    where, copies = processes.device(device_for(model, device)), getattr(kind_of(kind), "copies", ())
    adapter = adapt(own_pipeline(model, *copies, device=where), where)
    recipe = str(recipe or recipe_for(adapter))
    read = read_recipe(recipe)
    configured = configure(kind, read, overrides)
    if not shared_overrides:
        refuse_ignored(configured, overrides)
    chosen = configured.kind
    if not isinstance(chosen, TrainingKind | EditKind):
        raise UserError(f"the attack {kind!r} is one on prompts: use attack_prompts(), or --prompts FILE.")
    trains = isinstance(chosen, TrainingKind)
    levels = _levels(kind, chosen, steps, strengths, default_steps=read.attack_steps or STEPS)
    _check_inputs(kind, data=data, base=base)
    if strip is not None and not trains:
        raise UserError(f"a strip shows steps, and the attack {kind!r} has none (strip=, --strip PROMPT).")
    if trackers and not trains:
        raise UserError(f"trackers follow a training, and the attack {kind!r} has none (trackers=, --tracker NAME).")
    base_adapter = adapt(read_only(base, device=where), where) if "base" in needs(kind) else None
    if isinstance(chosen, EditKind):
        check_components(type(chosen).__name__, chosen.changed, adapter)
        chosen.check(adapter, base_adapter, levels)
    else:
        chosen.check(adapter)
        processes.check_divides(chosen.settings.batch_size, "batches")
    pictures = None
    if data is not None and "data" in needs(kind):
        pictures = read_imagefolder(data, size=adapter.image_size, default_text=getattr(chosen, "caption", None))
    request = {
        "command": "attack", "kind": kind,
        "model": named(model),
        "weights": adapter.fingerprint(), "data": fingerprint(data) if pictures is not None and data else None,
        "base": None if base_adapter is None else base_adapter.fingerprint(),
        "steps" if trains else "strengths": list(levels), "recipe": recipe,
        "settings": configured.kind.model_dump(mode="json"), "files": _hashes(chosen), "strip": strip, "seed": seed,
        "packages": GROUP.code([kind]) or None,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume, processes=processes, alone=True)
    checkpoints = {level: out / folder_name(kind, level) for level in levels}
    if folder.complete_before:
        return _result(folder, checkpoints)

    task = AttackTask(
        model=adapter, pictures=pictures, base=base_adapter, seed=seed, out=out, cache=folder.state, progress=progress,
        processes=processes,
    )  # fmt: skip
    with folder.alone(), torch.enable_grad():
        if isinstance(chosen, EditKind):
            processes.on_main(lambda: _edit(chosen, task, folder, checkpoints))
            changed = chosen.changed
        else:
            with folder.tracked(trackers):
                changed = _train(chosen, task, folder, checkpoints, None if strip is None else Strip(out, strip, seed))
        summary: dict[str, Any] = {"kind": kind, "recipe": recipe, "steps" if trains else "strengths": list(levels)}
        there = _there(checkpoints).values()
        folder.finish(**summary, checkpoints=[path.name for path in there], changed=list(changed))
    return _result(folder, checkpoints)


def _result(folder: RunFolder, checkpoints: Mapping[float, Path]) -> AttackResult:
    """Of a run that is complete, now or from before."""
    there = _there(checkpoints)
    for path in checkpoints.values():
        if path not in there.values():
            logger.warning("%s is gone, and is not made again: the attack is past it", path)
    paths = {f"{level:g}": str(path) for level, path in there.items()}
    return AttackResult(there, {**folder.summary(), "out": str(folder.path), "checkpoints": paths})


def _there(checkpoints: Mapping[float, Path]) -> dict[float, Path]:
    """Those that are whole: a record is the last of what is written."""
    return {level: path for level, path in checkpoints.items() if (path / RUN_FILE).is_file()}


def _train(
    kind: TrainingKind, task: AttackTask, folder: RunFolder, checkpoints: Mapping[float, Path], strip: Strip | None
) -> Sequence[str]:
    """Run the training to each of the ``checkpoints``; return the components that it changed."""
    watched = Watched(kind, task.model)
    begun = kind.begin(replace(task, model=task.model.in_precision(kind.settings.precision)))
    training = checked_training(kind, begun, task.model)
    run = Loop(training, kind.settings, seed=task.seed, processes=task.processes)
    state = folder.state / "training.safetensors"
    if task.processes.on_main(state.exists):
        run.restore(state)
    folder.truncate_log(run.step)
    last = max(checkpoints)

    def on_step(record: dict[str, Any]) -> None:
        folder.log(record)
        if task.progress is not None:
            task.progress("attacking", record["step"], int(last))

    def save(step: int, path: Path, twin: Path | None) -> None:
        save_pipeline(task.model, path, twin=twin, changed=training.changed)
        training.beside(path)
        folder.describe(path, step=step)
        if strip is not None:
            strip.draw(task.model.pipeline, step)

    def finish(twin: Path | None) -> None:
        save_pipeline(task.model, folder.path, twin=twin, changed=())
        training.beside(folder.path)
        if strip is not None:
            strip.join([int(step) for step in checkpoints])

    twin = None
    for step, path in checkpoints.items():
        if step >= run.step:
            with checkpointing(task.model.unet, kind.settings.gradient_checkpointing):
                run.run_to(int(step), state, on_step)
            training.write()
            if step:
                watched.check_moved()
            task.processes.on_main(partial(save, int(step), path, twin))
        twin = path
    task.processes.on_main(partial(finish, twin))
    return training.changed


def _edit(kind: EditKind, task: AttackTask, folder: RunFolder, checkpoints: Mapping[float, Path]) -> None:
    done = list(_there(checkpoints).values())
    folder.truncate_log(len(done))
    twin, watched = done[-1] if done else None, Watched(kind, task.model)
    for number, (strength, path) in enumerate(checkpoints.items(), start=1):
        if path not in done:
            figures = checked_made(kind, kind.make(task, strength, path, twin), path)
            watched.check_unmoved()
            folder.log({"step": number, kind.level: strength, **figures})
            folder.describe(path, step=number)
        twin = path
        if task.progress is not None:
            task.progress("attacking", number, len(checkpoints))
    if kind.leaves == "pipeline":
        save_pipeline(task.model, folder.path, twin=twin, changed=())


def _levels(
    kind: str,
    chosen: TrainingKind | EditKind,
    steps: Sequence[int] | None,
    strengths: Sequence[float] | None,
    *,
    default_steps: Sequence[int],
) -> tuple[float, ...]:
    """The steps or strengths that were asked for."""
    if isinstance(chosen, TrainingKind):
        if strengths is not None:
            raise UserError(f"the attack {kind!r} takes steps (steps=, --steps), not strengths (--strengths).")
        steps = default_steps if steps is None else steps
        try:
            whole = [operator.index(step) for step in steps]
        except TypeError:
            whole = []
        if not whole or whole[0] < 0 or whole != sorted(set(whole)):
            raise UserError(
                "steps (steps=, --steps) must be whole numbers from 0 on, ascending, each once, e.g. 0,50,100; "
                f"got {steps}."
            )
        return tuple(whole)
    if steps is not None:
        raise UserError(f"the attack {kind!r} takes strengths (strengths=, --strengths), not steps (--steps).")
    strengths = chosen.strengths if strengths is None else strengths
    try:
        given = [*strengths]
        sound = given and all(0 <= strength < math.inf for strength in given)
        sound = sound and len({f"{strength:g}" for strength in given}) == len(given)  # As folders are named.
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(
            "strengths (strengths=, --strengths) must be finite numbers of at least 0, each once, and apart in their "
            f"first six digits; got {strengths}."
        )
    return tuple(strength if isinstance(strength, int) else float(strength) for strength in given)


def _check_inputs(kind: str, *, data: Path | None, base: Any) -> None:
    """What is needed must be there; what would be ignored is refused."""
    wanted = {
        "data": (data, "folder of pictures (data=, --data DIR)"),
        "base": (base, "model before the erasing (base=, --base MODEL)"),
    }
    for name, (value, words) in wanted.items():
        if (value is not None) != (name in needs(kind)):
            raise UserError(f"the attack {kind!r} needs {'a ' if name in needs(kind) else 'no '}{words}.")


def _hashes(kind: Any) -> dict[str, str]:
    """SHA-256 of every file, and of every model, that the settings name, so that a run is resumed with the same."""
    files = {key: value for key, value in kind if isinstance(value, Path) and value.is_file()}
    hashes = {key: sha256(file) for key, file in files.items()}
    return hashes | {key: model.fingerprint() for key, model in getattr(kind, "models", {}).items()}
