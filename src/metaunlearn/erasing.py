"""``erase``: from a pipeline and the name of a concept to a pipeline without it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metaunlearn.cards import write_card
from metaunlearn.config import EraseSettings
from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.imagefolder import ImageText, fingerprint
from metaunlearn.delta import DELTA_FILE, make_delta
from metaunlearn.erasure.interface import CheckingMethod, ClosedFormMethod, ErasureTask, OptimisedMethod
from metaunlearn.erasure.prepare import given_data, prepare, retain_folders
from metaunlearn.erasure.registry import Configured, configure
from metaunlearn.errors import UserError
from metaunlearn.meta.hypergradient import mode_name
from metaunlearn.meta.outer import check_outer_optimizer
from metaunlearn.meta.train import Algorithm1, check_sharded, check_shares
from metaunlearn.models import adapt, load_pipeline, own_pipeline
from metaunlearn.models.memory import checkpointing
from metaunlearn.parameters import Params, subset
from metaunlearn.pipelines import save_pipeline
from metaunlearn.processes import ALONE, Processes
from metaunlearn.publishing import Hub, sign_in
from metaunlearn.publishing import push as upload
from metaunlearn.recipe import default_recipe, read_recipe
from metaunlearn.runs import Progress, RunFolder
from metaunlearn.shards import piece
from metaunlearn.tracking import check_trackers


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
    shared: Path | None = None,
    delta: bool = False,
    push: str | None = None,
    trackers: Sequence[str] = (),
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> EraseResult:
    """Erase ``concepts`` from ``model``; the given pipeline is left as it is.

    ``model`` is a pipeline, ``"canvas"``, a diffusers folder, a ``.safetensors`` file or a hub id. Each concept is a
    text, or several synonyms separated by ``|``. ``method`` is ``esd-SUBSET-ETA``, ``esd-2025``, ``sdd``, ``uce``,
    ``uce-2025``, ``rece``, or one that another package brings. ``forget_data`` and ``retain_data`` are imagefolders;
    without them the model makes the pictures itself, where the method needs any. ``retain_data`` may hold the
    imagefolders ``related`` and ``unrelated``. Runs that are given one folder ``shared`` sample the frozen teacher's
    paths once for all of them. With ``delta`` the folder ``out`` also gets what turns ``model`` into
    the result (:mod:`~metaunlearn.delta`), and with ``push`` it is uploaded to that repository of the hub.
    ``trackers`` (``tensorboard``, ``wandb``, ``trackio``) get what ``out/log.jsonl`` gets. ``processes`` that
    :func:`~metaunlearn.processes.join` connected share the work, each making this same call.
    Raises UserError before any work when the call is wrong, RunError when training breaks down.
    """
    if isinstance(concepts, str):
        concepts = [concepts]
    if out is None and (delta or push is not None):
        raise UserError("delta=True and push=... are about the run's folder; give one (out=..., --out DIR).")
    if out is None and trackers:
        raise UserError("trackers=... follow what a run logs in its folder; give one (out=..., --out DIR).")
    check_trackers(trackers)
    hub = sign_in(push) if push is not None and processes.main else None
    adapter = adapt(own_pipeline(model), processes.device(device))
    recipe = recipe or default_recipe(adapter.parameter_count, adapter.text_width, adapter.family)
    chosen = configure(method, read_recipe(recipe), overrides)
    prompts = prompts_for(adapter.pipeline, concepts, retain=retain, related=related)
    for text in prompts.forget + prompts.edited:
        adapter.check_concept(text)
    if isinstance(chosen.method, CheckingMethod):
        chosen.method.check(adapter, prompts)
    trained = chosen.method.trained(adapter)
    for setting in ("inner_subset", "diagnostics_subset"):
        subset(adapter.parameter_names, getattr(chosen.settings, setting), setting=setting)
    check_outer_optimizer(chosen.settings)
    check_shares(chosen.settings, processes, meta=meta)
    sharded = chosen.settings.sharded and processes.count > 1
    if sharded:
        check_sharded(chosen.settings, meta=meta)
    given = given_data(adapter, prompts, forget_data, retain_data)
    request = {
        "command": "erase", "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "weights": adapter.fingerprint(), "concepts": list(concepts), "method": chosen.name, "meta": meta,
        "retain": list(retain), "related": list(related),
        "forget_data": fingerprint(forget_data) if forget_data else None,
        "retain_data": {role: fingerprint(path) for role, path in retain_folders(retain_data).items()},
        "recipe": recipe, "settings": chosen.settings.model_dump(), "method_settings": chosen.method_settings,
        "seed": seed,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume, processes=processes) if out is not None else None
    if folder is not None and folder.complete_before:
        publish(folder, model, delta=delta, push=push, hub=hub)
        return EraseResult(load_pipeline(folder.path), chosen.settings, out, folder.summary())

    task = ErasureTask(
        model=adapter, prompts=prompts, settings=chosen.settings, seed=seed,
        cache=folder.state if folder else None, shared=shared,
        progress=folder.watched(progress) if folder else progress, processes=processes,
    )  # fmt: skip
    tracked = nullcontext() if folder is None else folder.tracked(trackers)
    with tracked, checkpointing(adapter.unet, chosen.settings.gradient_checkpointing):
        results = _erase(task, chosen, trained, given, folder, meta=meta, sharded=sharded)
    summary: dict[str, Any] = {"method": chosen.name, "meta": meta, "concepts": list(concepts), "recipe": recipe}
    summary |= results
    if folder is not None:
        if processes.main:
            save_pipeline(adapter, folder.path)
        folder.finish(**summary)
        publish(folder, model, delta=delta, push=push, hub=hub)
        summary |= {"out": str(out), "seconds": round(folder.seconds(), 1)}
    return EraseResult(adapter.pipeline, chosen.settings, out, summary)


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
    trained: frozenset[str],
    given: dict[str, ImageText],
    folder: RunFolder | None,
    *,
    meta: bool,
    sharded: bool,
) -> dict[str, Any]:
    """Put the erased parameters into the task's model; return what the summary says beside the request."""
    model, method = task.model, chosen.method
    # MODEL's own pictures are those of theta*, so they are made before any edit, and so are its own answers.
    trains = meta or isinstance(method, OptimisedMethod)
    data = teacher = None
    if trains:
        data = prepare(
            model, task.prompts, given, task.settings, task.seed, folder, task.progress, processes=task.processes
        )
        distils = task.settings.retain_loss == "distillation"
        teacher = model.parameters() if distils and isinstance(method, ClosedFormMethod) else None
    results: dict[str, Any] = {}
    forget = None
    if isinstance(method, ClosedFormMethod):
        edit = method.edit(task)
        model.load_parameters(dict(task.processes.broadcast(edit.theta)))
        results["edit"] = edit.report
    if sharded and trains:
        # Pictures were made with the whole model, while nothing else of its size was there.
        task = replace(task, model=model.sharded(checkpointed=task.settings.gradient_checkpointing))
        theta = task.model.parameters()
        teacher = None if teacher is None else {name: piece(p, theta[name]) for name, p in teacher.items()}
        del theta
    if isinstance(method, OptimisedMethod):
        forget = method.begin(task)
    if data is None:
        if folder is not None:
            folder.truncate_log(-1)
            folder.log({"step": 0, **results})
        return results
    run = Algorithm1(
        task.model, data, forget, task.settings,
        trained=trained, meta=meta, seed=task.seed, teacher=teacher, processes=task.processes,
    )  # fmt: skip
    model.load_parameters(_train(run, task, folder, results))
    model.unet.to(model.device)
    return results | ({} if run.mode is None else {"meta_gradient": mode_name(run.mode)})


def _train(run: Algorithm1, task: ErasureTask, folder: RunFolder | None, before: dict[str, Any]) -> Params:
    """Algorithm 1 from where an earlier run was cut off, or from the start; ``before`` is logged as step 0."""
    state = folder.state / "training.safetensors" if folder else None
    resumed = task.processes.on_main(lambda: state is not None and state.exists())
    if state is not None and resumed:
        run.restore(state)
    if folder is not None:
        folder.truncate_log(run.step if resumed else -1)
        if before and not resumed:
            folder.log({"step": 0, **before})

    def on_step(record: dict[str, Any]) -> None:
        if folder is not None:
            folder.log(record)
        if task.progress is not None:
            task.progress("erasing", record["step"], task.settings.steps)

    return run.run(state, on_step)
