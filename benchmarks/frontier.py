"""``docs/frontier.md``: what comes back against what is lost, from the trials of a search.

metaunlearn tune frontier-canvas --out runs/frontier
python benchmarks/frontier.py runs/frontier
"""

from __future__ import annotations

import argparse
from pathlib import Path

from metaunlearn.files import write_atomic
from metaunlearn.tuning.figure import figure
from metaunlearn.tuning.records import read_records
from metaunlearn.tuning.run import read_checked
from metaunlearn.tuning.tables import frontier_page


def main() -> None:
    """Read, draw, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="--out of the search, or its folder trials alone in DIR"
    )
    parser.add_argument("--recipe", default="frontier-canvas")
    parser.add_argument("--out", type=Path, default=Path("docs/frontier.md"))
    options = parser.parse_args()
    read, records = read_checked(options.recipe), read_records(options.folder)
    drawing = options.out.with_suffix(".svg")
    write_atomic(drawing, figure(records))
    title, _, rest = frontier_page(read, records, drawing.name).partition("\n\n")
    made_by = (
        f"`metaunlearn tune {options.recipe} --out runs/frontier`, then `python benchmarks/frontier.py runs/frontier`; "
        f"{read.tune.trials} trials beside plain and default are what the recipe asks for."
    )
    write_atomic(options.out, f"{title}\n\n{made_by}\n\n{rest}")


if __name__ == "__main__":
    main()
