"""Measuring a set of pictures batch by batch, whether they are being drawn or lie there already; and writing it down.

B pictures in a batch, (B, 3, H, W) in [0, 1]. Only what the metrics keep of a batch stays in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import Depicted
from metaunlearn.errors import UserError
from metaunlearn.files import path_of, write_atomic, write_json
from metaunlearn.metrics.distance import Distance
from metaunlearn.metrics.interface import Pictures, Request
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.kept import Gathering, Kept, read_kept, write_kept
from metaunlearn.metrics.registry import AnyMetric
from metaunlearn.processes import ALONE, Processes
from metaunlearn.runs import RESULTS_FILE, Count

RAW = "raw.jsonl"


def gather(
    metrics: Mapping[str, AnyMetric],
    request: Request,
    planned: Sequence[Sequence[int]],
    pictures: Callable[[Sequence[int]], Tensor],
    *,
    kept: Path | None = None,
    progress: Count | None = None,
    processes: Processes = ALONE,
) -> Gathering:
    """What ``metrics`` see in the ``pictures`` of each batch of indices that is ``planned``, gathered on all processes.

    ``kept`` is a folder that gets what was measured on each finished batch; a batch that lies there is not asked for
    again. Of several ``processes`` each measures its share of the batches.
    """
    mine = {number: planned[number] for number in processes.turns(len(planned))}
    whole, done, total = Gathering(len(request.draws)), 0, sum(map(len, mine.values()))
    for number, batch in mine.items():
        part = None if kept is None else read_kept(kept, number)
        if part is None:
            part = _measured(metrics, request, batch, pictures(batch))
            if kept is not None:
                write_kept(kept, number, part)
        whole.add(part)
        done += len(batch)
        if progress is not None:
            progress(done, total)
    for part in processes.of_others(lambda: whole.part([index for batch in mine.values() for index in batch])):
        if part.indices:
            whole.add(part)
    return whole


def _measured(metrics: Mapping[str, AnyMetric], request: Request, batch: Sequence[int], images: Tensor) -> Kept:
    pictures = Pictures(images=images, draws=[request.draws[index] for index in batch], request=request)
    by_key = {metric.key: metric for metric in metrics.values() if not isinstance(metric, Distance)}
    by_source = {metric.source: metric for metric in metrics.values() if isinstance(metric, Distance)}
    return Kept(
        indices=list(batch),
        size=(images.shape[2], images.shape[3]),
        rows={key: list(metric.measure(pictures)) for key, metric in by_key.items()},
        features={name: metric.embed(pictures) for name, metric in by_source.items()},
    )


def scores_of(
    metrics: Mapping[str, AnyMetric], request: Request, whole: Gathering, facts: Mapping[str, Any]
) -> dict[str, Score]:
    """The score of each metric; ``facts`` are the part of the protocol that all share, beside the bootstraps' seed."""
    scores = {}
    for name, metric in metrics.items():
        if isinstance(metric, Distance):
            score = metric.score(whole.features[metric.source], request)
        else:
            score = metric.score([row for row in whole.rows.get(metric.key, []) if row is not None], request)
        scores[name] = score.stamped(**facts, bootstrap_seed=request.seed)
    return scores


def refuse_measured(out: Path | str | None) -> None:
    """UserError when the folder ``out`` has scores already."""
    if out is not None and (path_of(out) / RESULTS_FILE).exists():
        raise UserError(f"{out} (--out) already holds {RESULTS_FILE}; choose another folder.")


def prompts_hash(prompts: Sequence[Prompt | Depicted]) -> str:
    """SHA-256 of what was asked for: texts, labels and roles."""
    rows = [[prompt.text, prompt.label, *([prompt.role] if prompt.role else [])] for prompt in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def write_evaluation(
    out: Path, pictures: Sequence[Mapping[str, Any]], whole: Gathering, scores: Mapping[str, Score]
) -> None:
    """``raw.jsonl``, each line what is known of one of the ``pictures`` and what was seen in it; then the scores."""
    lines = []
    for index, picture in enumerate(pictures):
        seen = {key: rows[index] for key, rows in whole.rows.items() if rows[index] is not None}
        lines.append(json.dumps({**picture, **seen}, ensure_ascii=False) + "\n")
    write_atomic(out / RAW, "".join(lines))
    write_json(out / RESULTS_FILE, {name: score.to_dict() for name, score in scores.items()})
