"""Scores of several evaluations in one table, which holds one protocol for each metric or is not made.

Every score carries its protocol: what was measured, by what, on which prompts. Two scores stand in one column only if
these agree in all but what a repetition changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.files import path_of
from metaunlearn.metrics.intervals import Score, comparable, require_same_protocol
from metaunlearn.runs import RESULTS_FILE


@dataclass(frozen=True, kw_only=True)
class Table:
    """Scores by evaluation and metric."""

    metrics: tuple[str, ...]
    """Columns."""
    rows: Mapping[str, Mapping[str, Score]]
    """By evaluation; a metric that it lacks is absent."""

    def markdown(self) -> str:
        """The table, each score as ``value [low, high]``, and under it the protocol of each column."""
        lines = ["| |" + "".join(f" {metric} |" for metric in self.metrics), "|---|" + "---|" * len(self.metrics)]
        for name, scores in self.rows.items():
            cells = (_cell(scores.get(metric)) for metric in self.metrics)
            lines.append(f"| {name} |" + "".join(f" {cell} |" for cell in cells))
        lines.append("")
        for metric in self.metrics:
            first = next(scores[metric] for scores in self.rows.values() if metric in scores)
            lines.append(f"- {metric}: {json.dumps(comparable(first.protocol), ensure_ascii=False)}")
        return "\n".join(lines) + "\n"


def join(results: Mapping[str, Mapping[str, Score]]) -> Table:
    """One table of several evaluations' scores; UserError names the first difference in protocol, and between whom."""
    if not any(results.values()):
        raise UserError("No table from no data: expected at least one evaluation with a score (results=, DIR).")
    metrics = tuple(dict.fromkeys(metric for scores in results.values() for metric in scores))
    for metric in metrics:
        holders = [(name, scores[metric]) for name, scores in results.items() if metric in scores]
        first_name, first = holders[0]
        for name, other in holders[1:]:
            try:
                require_same_protocol([first, other])
            except UserError as error:
                raise UserError(f"{metric} of {first_name} and of {name}: {error}") from error
    return Table(metrics=metrics, rows=results)


def read_results(folder: Path | str) -> dict[str, Score]:
    """The scores in ``folder/results.json``; UserError names what is wrong with it."""
    file = path_of(folder) / RESULTS_FILE
    if not file.is_file():
        raise UserError(f"{folder} (DIR) holds no {RESULTS_FILE}; give the --out of metaunlearn evaluate.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record, dict) and "bench" in record and "rows" in record:
            raise UserError(f"{folder} holds the tables of a bench, and not one evaluation; see its tables.md.")
        return {str(metric): _score(entry) for metric, entry in record.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no scores as metaunlearn evaluate writes them ({error}).") from error


def table_of(folders: Sequence[Path | str]) -> Table:
    """The scores in ``results.json`` of all ``folders`` as one table, each named by as much of its path as differs."""
    results: dict[str, dict[str, Score]] = {}
    for folder, name in zip(folders, _names([path_of(folder) for folder in folders]), strict=True):
        results[name] = read_results(folder)
    return join(results)


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    repeated = [folder for folder in folders if folders.count(folder) > 1]
    if repeated:
        raise UserError(f"{repeated[0]} was given twice (folders=, DIR).")
    deepest = max((len(folder.resolve().parts) for folder in folders), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise UserError("Two of the folders are the same one (folders=, DIR).")


def _score(entry: Mapping[str, Any]) -> Score:
    value, low, high = (float(entry[key]) for key in ("value", "low", "high"))
    if not all(math.isfinite(number) for number in (value, low, high)):
        raise ValueError("a score is not finite")
    return Score(value=value, low=low, high=high, n=int(entry["n"]), protocol=dict(entry["protocol"]))


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"
