"""Two models on the same prompts and seeds: a paired test on what two evaluations kept of every picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metaunlearn.errors import UserError
from metaunlearn.evaluation import RAW
from metaunlearn.metrics.intervals import Score, require_same_protocol
from metaunlearn.metrics.nudity import from_json, rule_named
from metaunlearn.metrics.paired import mcnemar, paired_bootstrap, sign_test
from metaunlearn.metrics.tables import read_results

PAIRS = ("prompt", "seed", "guidance_scale")
"""What must be equal for two pictures to be a pair."""
COUNTED = frozenset({"concept", "accuracy", "ua", "ira", "cra", "unsafe", "nudity"})
"""Metrics that ask yes or no of each picture; the others give it a number."""


def compare(one: Path | str, other: Path | str, metric: str, *, seed: int = 0) -> dict[str, Any]:
    """How much ``metric`` differs between two evaluations' folders, ``one`` less ``other``, with a paired test.

    Percentages of pictures are compared by McNemar's exact test, means by the exact sign test; the interval of the
    difference is a bootstrap over pairs, of seed ``seed``. UserError when the protocols, prompts or seeds differ.
    """
    scores = {folder: read_results(folder) for folder in (one, other)}
    for folder, found in scores.items():
        if metric not in found:
            raise UserError(
                f"{folder} has no score {metric!r} (metric=, --metric). It has: {', '.join(found) or 'none'}."
            )
    pair = [scores[one][metric], scores[other][metric]]
    require_same_protocol(pair)
    rows = [_rows(Path(folder), metric.partition(":")[0]) for folder in (one, other)]
    keys = [[tuple(row[key] for key in PAIRS) for row in part] for part in rows]
    if keys[0] != keys[1]:
        raise UserError(
            f"{one} and {other} (one=, other=, DIR) are not on the same prompts, seeds and guidance, so their pictures "
            "make no pairs. Evaluate both with the same --prompts, --images and --seed."
        )
    first, second = ([_value(metric, row, score) for row in part] for part, score in zip(rows, pair, strict=True))
    yes_or_no = metric.partition(":")[0] in COUNTED and pair[0].protocol.get("unit") == "percent of images"
    scale = 100 if yes_or_no else 1
    interval = paired_bootstrap(first, second, torch.Generator().manual_seed(seed))
    p = mcnemar(list(map(bool, first)), list(map(bool, second))) if yes_or_no else sign_test(first, second)
    return {
        "metric": metric,
        "one": pair[0].value,
        "other": pair[1].value,
        "difference": scale * interval.value,
        "low": scale * interval.low,
        "high": scale * interval.high,
        "n": interval.n,
        "p": p,
        "test": "McNemar, exact" if yes_or_no else "sign test, exact",
    }


def _rows(folder: Path, key: str) -> list[Mapping[str, Any]]:
    """The lines of ``raw.jsonl`` that the metric concerns."""
    file = folder / RAW
    if not file.is_file():
        raise UserError(f"{folder} (one=, other=, DIR) holds no {RAW}; give the --out of metaunlearn evaluate.")
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = [line for line in lines if key in line]
        if found:
            return [{**{name: line[name] for name in PAIRS}, key: line[key]} for line in found]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not hold what metaunlearn evaluate writes ({error}).") from error
    raise UserError(f"{file} has nothing on each picture for {key!r}: a distance between sets has no pairs.")


def _value(metric: str, row: Mapping[str, Any], score: Score) -> float:
    """What the metric says of one picture: 1 or 0, or its number."""
    name = metric.partition(":")[0]
    found = row[name]
    if name == "concept":
        return float(found["saw"] == score.protocol["concept"])
    if name in {"accuracy", "ira", "cra"}:
        return float(found["saw"] == found["label"])
    if name == "ua":
        return float(found["saw"] != found["label"])
    if name == "unsafe":
        return float(found["flagged"])
    if name == "nudity":
        rule = rule_named(score.protocol["rule"])
        hits = rule.hits([from_json(item, RAW) for item in found["detections"]])
        return float(hits > 0) if rule.counts == "images" else float(hits)
    return float(found["score"])
