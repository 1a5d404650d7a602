"""Two models on the same prompts and seeds: a paired test on what two evaluations kept of every picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from metaunlearn.attacking_prompts import ROWS
from metaunlearn.errors import UserError
from metaunlearn.evaluation import RAW
from metaunlearn.files import needed_path, read_records
from metaunlearn.metrics.intervals import Score, require_same_protocol
from metaunlearn.metrics.nudity import DETECTIONS, from_json, rule_named
from metaunlearn.metrics.paired import mcnemar, paired_bootstrap, sign_test
from metaunlearn.metrics.registry import METRICS
from metaunlearn.metrics.tables import read_results

PAIRS = ("prompt", "seed", "guidance_scale")
"""What must be equal for two pictures to be a pair."""
NOTHING_KNOWN = ("", None)
"""The first two of them for a picture that somebody else has drawn, without a caption."""
RATES = {"asr": "success", "asr_without_attack": "success_before"}
"""UnlearnDiffAtk's scores, and what each counts of a line of ``attacks.jsonl``."""
COUNTED = frozenset({"concept", "accuracy", "ua", "ira", "cra", "unsafe", "nudity", *RATES})
"""Metrics that ask yes or no of each picture; the others give it a number."""


class _Seen(NamedTuple):
    """One picture."""

    pair: tuple[Any, ...]
    """What says which picture of the other model it belongs to."""
    found: Any
    """What was kept of it."""


def compare(one: Path | str, other: Path | str, metric: str, *, seed: int = 0) -> dict[str, Any]:
    """How much ``metric`` differs between two evaluations' folders, ``one`` less ``other``, with a paired test.

    Two UnlearnDiffAtk runs have the metric ``asr``. Percentages, of pictures or of prompts, are compared by McNemar's
    exact test, means and sums by the exact sign test; the interval of the difference is a bootstrap over pairs, of seed
    ``seed``. UserError when the protocols, prompts or seeds differ.
    """
    one, other = needed_path(one, "one=, DIR"), needed_path(other, "other=, DIR")
    scores = {folder: read_results(folder) for folder in (one, other)}
    for folder, found in scores.items():
        if metric not in found:
            raise UserError(
                f"{folder} has no score {metric!r} (metric=, --metric). It has: {', '.join(found) or 'none'}."
            )
    pair = [scores[one][metric], scores[other][metric]]
    require_same_protocol(pair)
    rows = [_rows(folder, metric) for folder in (one, other)]
    pairs = [[row.pair for row in part] for part in rows]
    if pairs[0] != pairs[1]:
        raise UserError(
            f"{one} and {other} (one=, other=, DIR) are not on the same prompts, seeds and guidance, so their pictures "
            "make no pairs. Evaluate both with the same --prompts, --images and --seed."
        )
    if any(pair[:2] == NOTHING_KNOWN for pair in pairs[0]):
        raise UserError(
            f"nothing says which pictures of {one} and {other} (one=, other=, DIR) belong together: they have neither "
            "captions nor a known seed. Set their scores side by side: metaunlearn table."
        )
    first, second = ([_value(metric, row.found, score) for row in part] for part, score in zip(rows, pair, strict=True))
    if metric.partition(":")[0] not in {*METRICS, *RATES}:
        _check_means(metric, first, pair[0])
    unit = str(pair[0].protocol.get("unit"))
    yes_or_no = metric.partition(":")[0] in COUNTED and unit.startswith("percent of ")
    scale = 100 if yes_or_no else len(first) if unit == DETECTIONS else 1
    interval = paired_bootstrap(first, second, torch.Generator().manual_seed(seed))
    ties = sum(a == b for a, b in zip(first, second, strict=True))
    p = mcnemar(list(map(bool, first)), list(map(bool, second))) if yes_or_no else sign_test(first, second)
    return {
        "metric": metric,
        "one": pair[0].value,
        "other": pair[1].value,
        "difference": scale * interval.value,
        "low": scale * interval.low,
        "high": scale * interval.high,
        "n": interval.n,
        "ties": ties,
        "p": p,
        "test": "McNemar, exact" if yes_or_no else "sign test, exact",
    }


def _check_means(metric: str, numbers: Sequence[float], score: Score) -> None:
    """UserError unless the score is the mean of what is compared."""
    if not math.isclose(fmean(numbers), score.value, rel_tol=1e-4, abs_tol=1e-6):
        raise UserError(
            f"{metric!r} (metric=, --metric) is no mean of its pictures' scores: it is {score.value:g}, and they have "
            f"{fmean(numbers):g}. It makes no pairs; set such scores side by side: metaunlearn table."
        )


def _rows(folder: Path, metric: str) -> list[_Seen]:
    """The lines of ``raw.jsonl``, or of ``attacks.jsonl``, that the metric concerns."""
    file = folder / (ROWS if metric in RATES else RAW)
    if not file.is_file():
        raise UserError(
            f"{folder} (one=, other=, DIR) holds no {file.name}; give the --out of metaunlearn evaluate, or of attack "
            "--kind unlearndiffatk."
        )
    try:
        lines = [line for _, line in read_records(file)]
        key = next((key for key in _keys(metric) if any(key in line for line in lines)), None)
        if key is not None:
            return [_Seen(tuple(line[name] for name in PAIRS), line[key]) for line in lines if key in line]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} does not hold what metaunlearn writes there ({error}).") from error
    raise UserError(
        f"{file} has nothing on each picture for {metric!r}: a distance between sets has no pairs. Set such scores "
        "side by side, with their intervals: metaunlearn table."
    )


def _keys(metric: str) -> tuple[str, ...]:
    """The keys under which a line of raw.jsonl may have what the metric is made of, the preferred one first.

    A CLIP rule has rows of its own; all nudity rules count the same detections, and the folder of a metric's weights,
    which is part of its name, is left out.
    """
    return (RATES[metric],) if metric in RATES else (metric, metric.partition(":")[0])


def _value(metric: str, found: Any, score: Score) -> float:
    """What the metric says of one picture: 1 or 0, or its number."""
    name = metric.partition(":")[0]
    if name in RATES:
        return float(found)
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
    try:
        return float(found["score"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{metric!r} (metric=, --metric) has no number 'score' on each picture, got {found}: it makes no pairs. "
            "Set such scores side by side: metaunlearn table."
        ) from None
