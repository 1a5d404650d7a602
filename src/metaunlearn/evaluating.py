"""From names to a result folder: what ``evaluate`` of the command line does with a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metaunlearn.evaluation import plan
from metaunlearn.files import read_json, sha256
from metaunlearn.metrics.registry import code_behind, measured_by, refuse_unread
from metaunlearn.models import load
from metaunlearn.overrides import Overrides
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import RESULTS_FILE, Count, RunFolder


def evaluate_into(
    model: str,
    prompts: Path,
    out: Path,
    *,
    metrics: Sequence[str],
    judge: str | None = None,
    concept: str | None = None,
    alternatives: Sequence[str] = (),
    reference: Path | None = None,
    images: int = 1,
    steps: int | None = None,
    guidance_scale: float | None = None,
    overrides: Overrides = (),
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Score ``model`` on the prompts of a file; ``out`` gets ``results.json``, the pictures and ``run.json``.

    Without ``judge`` Canvas and what descends from it is seen by Canvas's own; another model has none.

    Returns ``results.json``'s content under ``"results"``. ``steps``, ``guidance_scale`` and ``overrides`` are those of
    :func:`~metaunlearn.evaluation.evaluate`. ``processes`` share the pictures as for
    :func:`~metaunlearn.generating.generate_into`.
    """
    refuse_unread(metrics, judge=judge, concept=concept, alternatives=alternatives, reference=reference)
    device = processes.device(device)
    adapter = load(model, device)
    evaluation = plan(
        adapter.pipeline,
        prompts,
        metrics=metrics,
        judge=judge,
        concept=concept,
        alternatives=alternatives,
        reference=reference,
        seed=seed,
        images_per_prompt=images,
        steps=steps,
        guidance_scale=guidance_scale,
        overrides=overrides,
        device=device,
    )
    request = {
        "command": "evaluate",
        "model": model,
        "weights": adapter.fingerprint(),
        "prompts": sha256(prompts),
        "metrics": list(metrics),
        "judge": judge,
        "concept": concept,
        "alternatives": list(alternatives),
        "reference": None if reference is None else str(reference),
        "packages": code_behind(metrics) or None,
        **measured_by(evaluation.metrics, evaluation.request),
        "images": images,
        "steps": evaluation.steps,
        "guidance_scale": guidance_scale,
        "settings": evaluation.settings.model_dump(),
        "seed": seed,
    }
    folder = RunFolder.open(out, request, resume=resume, processes=processes, alone=True)
    if not folder.complete_before:
        with folder.alone():
            scores = evaluation.run(
                adapter.pipeline, out=out, kept=folder.state, progress=folder.watched(progress), processes=processes
            )
            folder.finish(metrics=list(scores))
    return {"out": str(out), "results": read_json(out / RESULTS_FILE)}
