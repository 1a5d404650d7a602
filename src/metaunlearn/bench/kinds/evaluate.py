"""Scores of the pictures that one state of one model drew for given prompts; what ``measure`` does for tasks of
Canvas."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.data.imagefolder import list_entries
from metaunlearn.data.prompts import Prompt
from metaunlearn.evaluating_pictures import plan_pictures
from metaunlearn.files import read_json
from metaunlearn.metrics.judge import Judge, load_judge
from metaunlearn.metrics.scores_file import with_raw, write_scores
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress, labelled


def make(
    folder: Path,
    *,
    sets: Sequence[Mapping[str, Any]],
    judge: str,
    concept: str,
    alternatives: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
    **drawn: Path,
) -> None:
    """``folder/scores.json``, by the names in each set's ``scores``; ``folder/samples`` has its first pictures.

    ``drawn`` are the cells with the pictures of the sets, by what each says in ``drawn``.
    """
    loaded = load_judge(judge, device=device)
    scores: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for one in sets:
        pictures = drawn[one["drawn"]]
        if one["scores"]:
            scores |= _scores(
                folder, pictures, loaded, one, concept, alternatives, seed, device=device, progress=progress
            )
        samples += _samples(folder / "samples", pictures, one)
    write_scores(folder, scores, samples)


def _scores(
    folder: Path,
    pictures: Path,
    judge: Judge,
    one: Mapping[str, Any],
    concept: str,
    alternatives: Sequence[str],
    seed: int,
    *,
    device: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """What was measured on finished batches is kept until the set is done, so that a killed cell goes on."""
    evaluation = plan_pictures(
        pictures,
        metrics=list(one["scores"].values()),
        judge=judge,
        prompts=[Prompt(**record) for record in one["prompts"]],
        concept=concept,
        alternatives=alternatives,
        reference=one["reference"] or None,
        seed=seed,
        device=device,
    )
    kept = folder / "kept" / one["name"]
    found = evaluation.run(
        kept=kept,
        progress=labelled(progress, f"measuring {one['name']}"),
    )
    shutil.rmtree(kept.parent)
    return with_raw(dict(zip(one["scores"], found.values(), strict=True)))


def _samples(folder: Path, pictures: Path, one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The set's first pictures, which outlive those that were scored."""
    drawn = read_json(pictures / RUN_FILE)["request"]["images"]
    records: list[dict[str, Any]] = []
    folder.mkdir(exist_ok=True)
    for (text, seed, _), entry in itertools.islice(zip(drawn, list_entries(pictures), strict=True), one["shown"]):
        name = f"{one['name']}-{len(records):04d}.png"
        shutil.copyfile(entry.file, folder / name)
        records.append({"role": one["name"], "prompt": text, "seed": seed, "file": name, "sensitive": one["sensitive"]})
    return records
