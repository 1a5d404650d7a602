"""Another rule on what an evaluation has seen: ``raw.jsonl`` holds every detection, so nothing is drawn again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.evaluation import RAW
from metaunlearn.files import path_of, read_json, read_records, write_json
from metaunlearn.metrics.nudity import from_json, nudity_score, rule_named
from metaunlearn.runs import RESULTS_FILE

DETECTOR = ("judge", "judge_weights", "channels", "suppression")
"""What of a nudity score's protocol describes the detector; the rest is the rule's, or the evaluation's."""


def rescore(folder: Path | str, rule: str) -> dict[str, Any]:
    """Score the evaluation in ``folder`` by the nudity rule of that name; its ``results.json`` gets ``nudity:RULE``.

    Returns the new entry. The protocol's other facts (prompts, seeds, steps ...) are those of the evaluation.
    """
    folder = path_of(folder)
    wanted = rule_named(rule)
    file = folder / RESULTS_FILE
    if not file.is_file() or not (folder / RAW).is_file():
        raise UserError(
            f"{folder} (folder=, DIR) holds no {RESULTS_FILE} and {RAW}; give the --out of metaunlearn evaluate."
        )
    results = read_json(file)
    earlier = next((score for key, score in results.items() if key.partition(":")[0] == "nudity"), None)
    if earlier is None:
        raise UserError(
            f"{folder} (folder=, DIR) was not evaluated for nudity; evaluate it with --metrics nudity first."
        )
    detections = []
    for number, row in read_records(folder / RAW):
        where = f"{folder / RAW}, line {number}"
        detections.append([from_json(item, where) for item in _detections(row, where)])
    protocol = earlier["protocol"]
    detector = {key: protocol.get(key) for key in DETECTOR}
    # Evaluations of earlier versions do not say their seed, which was 0 unless somebody asked for another.
    found = nudity_score(detections, wanted, detector=detector, seed=protocol.get("bootstrap_seed", 0))
    facts = {key: value for key, value in protocol.items() if key not in found.protocol}
    entry = {f"nudity:{rule}": found.stamped(**facts).to_dict()}
    write_json(file, results | entry)
    return entry


def _detections(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    try:
        found: list[Mapping[str, Any]] = row["nudity"]["detections"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: expected a picture with its nudity detections ({error}).") from error
    return found
