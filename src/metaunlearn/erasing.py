"""``erase``: from a pipeline and the name of a concept to a pipeline without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from metaunlearn.cards import write_card
from metaunlearn.checkpoint import load_kept, save_tensors
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import ConceptPrompts, prompts_for
from metaunlearn.data.imagefolder import ImageText, fingerprint
from metaunlearn.data.latents import ErasureData
from metaunlearn.data.wording import listed, texts_of
from metaunlearn.delta import DELTA_FILE, make_delta
from metaunlearn.erasure.given import Untouched, checked_edit, checked_loss, trained_by
from metaunlearn.erasure.interface import (
    CheckingMethod,
    ClosedFormMethod,
    Defence,
    DefendedMethod,
    ErasureTask,
    ForgetLoss,
    OptimisedMethod,
    takes_steps,
)
from metaunlearn.erasure.prepare import given_data, prepare, retain_folders
from metaunlearn.erasure.registry import Configured, check_objective, configure, refuse_unheard
from metaunlearn.errors import UserError
from metaunlearn.files import path_of
from metaunlearn.meta.alignment import aligned
from metaunlearn.meta.inner import attacked
from metaunlearn.meta.modes import mode_name
from metaunlearn.meta.outer import check_outer_optimizer
from metaunlearn.meta.together import check_sharded, check_shares
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import TextToImageModel, adapt, device_for, load_pipeline, own_pipeline
from metaunlearn.models.memory import checkpointing, set_aside
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.parameters import Params, subset
from metaunlearn.pipelines import save_pipeline
from metaunlearn.processes import ALONE, Processes
from metaunlearn.publishing import Hub, sign_in
from metaunlearn.publishing import push as upload
from metaunlearn.recipe import read_recipe, recipe_for
from metaunlearn.runs import Progress, RunFolder, named, short_name
from metaunlearn.settings import whole_number
from metaunlearn.shards import piece
from metaunlearn.tracking import check_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EraseResult:
    """What :func:`erase` returns."""

    pipeline: Any = field(repr=False)
    """An ordinary diffusers pipeline without the concept."""
    settings: EraseSettings = field(repr=False)
    """The settings as resolved."""
    out: Path | None
    """The run's folder, when one was asked for."""
    summary: dict[str, Any]
    """What the command line prints with ``--json``."""

    def save(self, folder: Path | str) -> Path:
        """Write the pipeline to ``folder``, as a run's own folder holds it: how it is drawn, too, is kept with it.

        Its own ``save_pretrained`` writes all but that, and it would be drawn as Stable Diffusion is by default.
        UserError when there is something in ``folder``.
        """
        folder = path_of(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already, and not an empty folder; choose another.")
        save_pipeline(adapt(self.pipeline), folder)
        return folder


def erase(
    model: Any,
    concepts: Sequence[str] | str,
    *,
    method: str = "esd-u-1",
    meta: bool | None = None,
    retain: Sequence[str] | str = (),
    related: Sequence[str] | str = (),
    forget_data: Path | str | None = None,
    retain_data: Path | str | None = None,
    recipe: Path | str | None = None,
    overrides: Overrides = (),
    shared_overrides: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    shared: Path | str | None = None,
    delta: bool = False,
    push: str | None = None,
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> EraseResult:
    """Erase ``concepts`` from ``model``; the given pipeline is left as it is.

    ``model`` is a pipeline, ``"canvas"``, a diffusers folder, a ``.safetensors`` file or a hub id. Each concept is a
    text, or several synonyms separated by ``|``, and so is what is kept (``retain``, ``related``). ``method`` is
    ``esd-SUBSET-ETA``, ``esd-2025``, ``sdd``, ``uce``, ``uce-2025``, ``rece``, ``resalign``, ``imma``, or one that
    another package brings. ``meta`` is on unless it is said otherwise, but with ``resalign`` and ``imma``, which have a
    defence of their own. ``forget_data`` and
    ``retain_data`` are imagefolders; without them the model makes the pictures itself, where the method needs any.
    ``retain_data`` may hold the imagefolders ``related`` and ``unrelated``. Where ``retain`` names nothing, a list of
    this program's own is kept; ``retain=["none"]`` keeps what is ``related``, and what the method says, alone. What
    ``overrides`` say and this run would not read is refused, unless they are ``shared_overrides``, said to other runs
    at the same time, as a grid's are. Runs that are given one folder ``shared`` sample the frozen teacher's paths once
    for all of them. With ``delta`` the folder ``out`` also gets what turns ``model`` into the result
    (:mod:`~metaunlearn.delta`), and with ``push`` it is uploaded to that repository of the hub.
    ``trackers`` (``tensorboard``, ``wandb``, ``trackio``) get what ``out/log.jsonl`` gets. ``processes`` that
    :func:`~metaunlearn.processes.join` connected share the work, each making this same call. ``device`` is where the
    work is done; ``None``: where ``model`` is, and on the CPU when it is given by name.
    Raises UserError before any work when the call is wrong, RunError when training breaks down.
    """
    concepts, retain, related = map(texts_of, (concepts, retain, related))
    seed = whole_number(seed, "seed=, --seed")
    overrides, trackers = as_overrides(overrides), listed(trackers)
    out, forget_data, retain_data, shared = map(path_of, (out, forget_data, retain_data, shared))
    if out is None and (delta or push is not None):
        raise UserError("delta=True and push=... are about the run's folder; give one (out=..., --out DIR).")
    if out is None and trackers:
        raise UserError("trackers=... follow what a run logs in its folder; give one (out=..., --out DIR).")
    if out is None and resume:
        raise UserError("resume=True goes on with a run's folder; give it (out=..., --out DIR).")
    check_trackers(trackers)
    hub = sign_in(push) if push is not None and processes.main else None
    where = processes.device(device_for(model, device))
    adapter = adapt(own_pipeline(model, device=where), where)
    recipe = str(recipe or recipe_for(adapter))
    chosen = configure(method, read_recipe(recipe), overrides)
    if meta is None and chosen.defended:
        logger.info("%s has a defence of its own: the meta objective is off", chosen.name)
    meta = chosen.with_meta(meta)
    if not shared_overrides:
        refuse_unheard(chosen, overrides, meta=meta)
    prompts = prompts_for(adapter.pipeline, concepts, retain=retain, related=related)
    sharded = chosen.settings.sharded and processes.count > 1
    check_job(adapter, prompts, chosen, processes, meta=meta, sharded=sharded)
    if retain_data is None and takes_steps(chosen.method, meta=meta):
        prompts.check_retained()
    given = given_data(adapter, prompts, forget_data, retain_data)
    request = {
        "command": "erase", "model": named(model),
        "weights": adapter.fingerprint(), "concepts": concepts, "method": chosen.name, "meta": meta,
        "retain": retain, "related": related,
        "forget_data": fingerprint(forget_data) if forget_data else None,
        "retain_data": {role: fingerprint(path) for role, path in retain_folders(retain_data).items()},
        "recipe": recipe, "seed": seed, "packages": chosen.packages or None, **chosen.record(),
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume, processes=processes, alone=True) if out is not None else None
    if folder is not None and folder.complete_before:
        publish(folder, model, delta=delta, push=push, hub=hub)
        return EraseResult(
            load_pipeline(folder.path).to(adapter.device), chosen.settings, out, {**folder.summary(), "out": str(out)}
        )

    task = ErasureTask(
        model=adapter, prompts=prompts, settings=chosen.settings, seed=seed,
        cache=folder.state if folder else None, shared=shared,
        progress=folder.watched(progress) if folder else progress, processes=processes,
    )  # fmt: skip
    alone, tracked = (nullcontext(), nullcontext()) if folder is None else (folder.alone(), folder.tracked(trackers))
    with alone, tracked, torch.enable_grad(), checkpointing(adapter.unet, chosen.settings.gradient_checkpointing):
        results = _erase(task, chosen, given, folder, meta=meta, sharded=sharded)
        summary: dict[str, Any] = {"method": chosen.name, "meta": meta, "concepts": concepts, "recipe": recipe}
        summary |= {**results, "model_name": short_name(model)}
        if folder is not None:
            if processes.main:
                save_pipeline(adapter, folder.path)
            folder.finish(**summary)
    if folder is not None:
        publish(folder, model, delta=delta, push=push, hub=hub)
        summary = {**folder.summary(), "out": str(out)}
    return EraseResult(adapter.pipeline, chosen.settings, out, summary)


def check_job(
    model: TextToImageModel,
    prompts: ConceptPrompts,
    chosen: Configured,
    processes: Processes,
    *,
    meta: bool,
    sharded: bool,
) -> None:
    """UserError when what is ``chosen`` cannot erase the concepts of ``prompts`` from ``model``."""
    for stage in chosen.stages:
        if isinstance(stage.method, CheckingMethod):
            stage.method.check(model, prompts)
        attacked(model.parameter_names, stage.settings.inner_subset, stage.method.trained(model))
        subset(model.parameter_names, stage.settings.diagnostics_subset, setting="diagnostics_subset")
        check_outer_optimizer(stage.settings)
        check_shares(stage.settings, processes, meta=meta)
    for text in prompts.forget + prompts.edited:
        model.check_concept(text)
    check_objective(chosen, meta=meta)
    if sharded:
        check_sharded(chosen.settings, meta=meta, defended=chosen.defended)


def publish(run: RunFolder, base: Any, *, delta: bool, push: str | None, hub: Hub | None) -> None:
    """The card of a complete run, its delta to ``base`` where it is wanted, and its upload."""
    if not run.processes.main:
        return
    write_card(run.path)
    if delta and not (run.path / DELTA_FILE).exists():
        make_delta(base, run.path, run.path / DELTA_FILE)
    if push is not None and hub is not None:
        upload(run.path, push, hub)


def _erase(
    task: ErasureTask,
    chosen: Configured,
    given: dict[str, ImageText],
    folder: RunFolder | None,
    *,
    meta: bool,
    sharded: bool,
) -> dict[str, Any]:
    """Put the erased parameters into the task's model; return what the summary says beside the request."""
    model = task.model
    # MODEL's own pictures are those of theta*, so they are made before any edit, and so are its own answers.
    data = teacher = None
    if takes_steps(chosen.method, meta=meta):
        data = prepare(
            model, task.prompts, given, task.settings, task.seed, folder, task.progress, processes=task.processes
        )
        distilled = any(stage.settings.retain_loss == "distillation" for stage in chosen.stages)
        moves_first = isinstance(chosen.method, ClosedFormMethod) or chosen.base is not None
        teacher = model.parameters() if distilled and moves_first else None
    report: dict[str, Any] = {}
    if data is not None and task.settings.retain_weighting == "alignment":
        data, report = aligned(task, data, chosen.method.trained(model))
    first = {} if chosen.base is None else {"base": _erase_first(task, chosen.base, data, teacher)}
    run, found, untouched = _begin(task, chosen, data, teacher, meta=meta, sharded=sharded)
    results: dict[str, Any] = {**first, **found}
    if run is None:
        if folder is not None:
            folder.truncate_log(-1)
            folder.log({"step": 0, **results})
        return results
    with set_aside(model.unet, model.device):
        theta = _train(run, task, folder, results | report, untouched)
    model.load_parameters(theta)
    mode = run.mode()
    return results | ({} if mode is None else {"meta_gradient": mode_name(mode)})


def _begin(
    task: ErasureTask,
    chosen: Configured,
    data: ErasureData | None,
    teacher: Params | None,
    *,
    meta: bool,
    sharded: bool = False,
) -> tuple[Algorithm1 | None, dict[str, Any], Untouched]:
    """The outer loop at its start, if the method has one; what it did before, a closed-form edit; and what it does not
    train, as it was before it began."""
    method, found = chosen.method, {}
    trained = trained_by(method, task.model)
    forget: ForgetLoss | None = None
    defence: Defence | None = None
    if isinstance(method, ClosedFormMethod):
        edit = checked_edit(method, method.edit(task), task.model)
        task.model.load_parameters(dict(task.processes.broadcast(edit.theta)))
        found["edit"] = edit.report
    untouched = Untouched(method, task.model, trained)
    if data is None or not takes_steps(method, meta=meta):
        return None, found, untouched
    if sharded:
        # Pictures were made, and matrices edited, with the whole model, while nothing else of its size was there.
        task, teacher = _shared_out(task, teacher)
    if isinstance(method, OptimisedMethod):
        forget = checked_loss(chosen.name, method.begin(task))
    elif isinstance(method, DefendedMethod):
        defence = method.defend(task, data)
    run = Algorithm1(
        task.model, data, forget, task.settings,
        trained=trained, meta=meta, seed=task.seed, teacher=teacher, defence=defence,
        processes=task.processes,
    )  # fmt: skip
    untouched.check(run.theta)
    return run, found, untouched


def _shared_out(task: ErasureTask, teacher: Params | None) -> tuple[ErasureTask, Params | None]:
    """The task with its model's denoiser in pieces, and the teacher cut alike."""
    model = task.model.sharded(checkpointed=task.settings.gradient_checkpointing)
    if teacher is not None:
        theta = model.parameters()
        teacher = {name: piece(p, theta[name]) for name, p in teacher.items()}
    return replace(task, model=model), teacher


def _erase_first(
    task: ErasureTask, base: Configured, data: ErasureData | None, teacher: Params | None
) -> dict[str, Any]:
    """Put what ``base`` erases plainly into the task's model; a resumed run finds it, or goes on with it."""
    cache, model, steps = task.cache, task.model, base.settings.total_steps
    done = None if cache is None else cache / "base.safetensors"
    if done is not None and task.processes.on_main(done.exists):
        model.load_parameters(load_kept(done)[0])
    else:
        run, _, _ = _begin(replace(task, settings=base.settings), base, data, teacher, meta=False)
        if run is not None:
            state = None if cache is None else cache / "base-training.safetensors"
            _restore(run, state)
            with set_aside(model.unet, model.device):
                theta = run.run(state, lambda record: _tell(task, "erasing first", record["step"], steps))
            model.load_parameters(theta)
        if done is not None and task.processes.main:
            save_tensors(done, model.parameters())
    return {"method": base.name, "steps": steps if takes_steps(base.method, meta=False) else 0}


def _train(
    run: Algorithm1, task: ErasureTask, folder: RunFolder | None, before: dict[str, Any], untouched: Untouched
) -> Params:
    """Algorithm 1 from where an earlier run was cut off, or from the start; ``before`` is logged as step 0."""
    state = folder.state / "training.safetensors" if folder else None
    resumed = _restore(run, state)
    if folder is not None:
        folder.truncate_log(run.step if resumed else -1)
        if before and not resumed:
            folder.log({"step": 0, **before})

    def on_step(record: dict[str, Any]) -> None:
        if folder is not None:
            folder.log(record)
        if record["step"] in (1, task.settings.total_steps):
            untouched.check(run.theta)
        label = "healing" if record.get("phase") == "heal" else "erasing"
        _tell(task, label, record["step"], task.settings.total_steps)

    return run.run(state, on_step)


def _restore(run: Algorithm1, state: Path | None) -> bool:
    """Put ``run`` where an earlier one was cut off; whether there was one."""
    found = run.processes.on_main(lambda: state is not None and state.exists())
    if state is not None and found:
        run.restore(state)
    return found


def _tell(task: ErasureTask, what: str, done: int, total: int) -> None:
    if task.progress is not None:
        task.progress(what, done, total)
