"""``table.csv``: a grid in long form."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from metaunlearn.bench.results import SCORES, Found, Measured, other_scores, pooled


def as_csv(found: Found) -> str:
    """One line for each score of each row, and one for all seeds together."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "concept", "method", "variant", "model", "attack", "step", "seed", "score", "value", "low", "high", "n",
    ])  # fmt: skip
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for measured in found.rows:
        row = measured.row
        groups.setdefault((row.concept, row.method, row.variant, row.model, row.attack, row.step), []).append(measured)
    others = other_scores(found.rows)
    for place, rows in groups.items():
        for name in (*SCORES, *others):
            for measured in rows:
                if name in measured.scores:
                    score = measured.scores[name]
                    figures = [_figure(score[key]) for key in ("value", "low", "high")]
                    writer.writerow([*place, measured.row.seed, name, *figures, score["n"]])
            together = pooled(rows, name)
            if together is not None:
                facts = asdict(together)
                figures = [_figure(facts[key]) for key in ("value", "low", "high")]
                writer.writerow([*place, "all", name, *figures, together.n])
    return out.getvalue()


def _figure(value: float) -> float:
    """With six significant digits: a KID has three zeros behind its point."""
    return float(f"{value:.6g}")
