"""Pages of a grid's tables in ``docs/``, from the results that are committed in ``benchmarks/made``.

python benchmarks/tables.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from grids import read

from metaunlearn.bench.results import Found, Measured
from metaunlearn.bench.state import State
from metaunlearn.bench.tables import markdown
from metaunlearn.files import write_atomic

ROOT = Path(__file__).parent.parent
PAGES = {
    "ablation-gradient.md": (
        "ablation-gradient-h200.json",
        "ablation-gradient-cpu-2.json",
        "ablation-gradient-cpu-3.json",
    ),
    "adversarial-canvas.md": ("adversarial-cpu.json",),
    "attack-optimizers-canvas.md": ("attack-optimizers-cpu.json",),
    "compute-canvas.md": ("compute-cpu.json",),
    "table1-canvas.md": ("quick-table1-cpu.json",),
    "table3-canvas.md": ("table3-cpu.json",),
    "table4-canvas.md": ("table4-cpu.json",),
    "table5-canvas.md": ("table5-cpu.json",),
}
"""By page, the results; a later file's where no earlier one has them."""


def page_of(results: Sequence[str]) -> str:
    """The page of the committed ``results``."""
    return markdown(together(read([ROOT / "benchmarks" / "made" / name for name in results])))


def together(parts: Sequence[Found]) -> Found:
    """One grid of several calls: the last one's, with each state as the first that has it found it.

    A protocol's digest has changed with what counts as part of it; the same protocol gets one digest again.
    """
    digests: dict[str, str] = {}
    for part in parts:
        for digest, protocol in part.protocols.items():
            digests.setdefault(json.dumps(protocol, sort_keys=True), digest)
    rows: dict[State, Measured] = {}
    for part in parts:
        now = {was: digests[json.dumps(protocol, sort_keys=True)] for was, protocol in part.protocols.items()}
        for measured in part.rows:
            scores = {name: score | {"protocol": now[score["protocol"]]} for name, score in measured.scores.items()}
            rows.setdefault(measured.row, replace(measured, scores=scores))
    protocols = {digest: json.loads(protocol) for protocol, digest in digests.items()}
    return replace(parts[-1], rows=list(rows.values()), protocols=protocols)


def main() -> None:
    """Write all pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, results in PAGES.items():
        write_atomic(ROOT / "docs" / page, page_of(results))
        print(page)


if __name__ == "__main__":
    main()
