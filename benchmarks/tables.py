"""Pages of a grid's tables in ``docs/``, from the results that are committed in ``benchmarks/made``.

python benchmarks/tables.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from grids import read

from metaunlearn.bench.tables import markdown
from metaunlearn.files import write_atomic

ROOT = Path(__file__).parent.parent
PAGES = {
    "adversarial-canvas.md": "adversarial-cpu.json",
    "attack-optimizers-canvas.md": "attack-optimizers-cpu.json",
    "compute-canvas.md": "compute-cpu.json",
    "table1-canvas.md": "quick-table1-cpu.json",
    "table3-canvas.md": "table3-cpu.json",
    "table4-canvas.md": "table4-cpu.json",
    "table5-canvas.md": "table5-cpu.json",
}
"""By page, the results."""


def page_of(results: str) -> str:
    """The page of the committed ``results``."""
    [found] = read([ROOT / "benchmarks" / "made" / results])
    return markdown(found)


def main() -> None:
    """Write all pages."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, results in PAGES.items():
        write_atomic(ROOT / "docs" / page, page_of(results))
        print(page)


if __name__ == "__main__":
    main()
