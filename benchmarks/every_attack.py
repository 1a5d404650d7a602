"""``docs/every-attack.md``: what every attack brings back, plainly unlearned and meta-unlearned, from a grid.

metaunlearn bench attacks-canvas --out runs/table1
python benchmarks/every_attack.py runs/table1/attacks-canvas/results.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from resistance import in_markdown, read

from metaunlearn.bench.entries import at
from metaunlearn.bench.formats import to_markdown
from metaunlearn.bench.lines import by_line
from metaunlearn.bench.recipe import GridConcept, ModelName, levels_of
from metaunlearn.bench.results import Found, Measured, Pooled, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.bench.tables import NOTE, concept_tables
from metaunlearn.files import write_atomic
from metaunlearn.report.charts import as_file
from metaunlearn.report.grid.survey import SCORES, surveys

MODELS: tuple[ModelName, ModelName] = ("unlearn", "meta-unlearn")
HEADS = ("attack", "plainly unlearned", "meta-unlearned", "meta / plain", "by seed", "meta-unlearning")
HARMLESS = 5.0
"""Percent that neither model shows more than: such an attack does not bring the concept back."""


@dataclass(frozen=True)
class Verdict:
    """What one attack brings out at its last step, or strength, of both models."""

    name: str
    plain: Pooled
    meta: Pooled

    @property
    def ratio(self) -> str:
        """Meta over plain."""
        return _quotient(self.meta.value, self.plain.value)

    @property
    def by_seed(self) -> str:
        """The same, of each seed that both have."""
        both = [seed for seed in self.plain.by_seed if seed in self.meta.by_seed]
        return ", ".join(_quotient(self.meta.by_seed[seed], self.plain.by_seed[seed]) for seed in both)

    @property
    def words(self) -> str:
        """Whether meta-unlearning helps: where the intervals lie apart."""
        if max(self.meta.value, self.plain.value) <= HARMLESS:
            return "nothing to hold: neither shows it"
        if self.meta.high < self.plain.low:
            return "helps"
        return "**is worse**" if self.meta.low > self.plain.high else "**does not help**"

    @property
    def line(self) -> list[str]:
        """In the table."""
        return [self.name, _interval(self.plain), _interval(self.meta), self.ratio, self.by_seed, self.words]


def main() -> None:
    """Read, draw, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="results.json of the grid of every attack")
    parser.add_argument("--out", type=Path, default=Path("docs/every-attack.md"))
    options = parser.parse_args()
    (found,) = read([options.results])
    write_atomic(options.out, page(found, options.out))


def verdicts(found: Found, concept: GridConcept) -> list[Verdict]:
    """One for each attack that both models were put to, in the recipe's order; first before any attack."""
    (method,) = found.grid.methods
    lines = by_line(measured for measured in found.rows if measured.row.concept == concept.name)
    rows = {line.model: mine for line, mine in lines.items() if line.method == method}
    places = [("before any attack", (BEFORE, 0.0))]
    for attack in found.grid.attacks:
        level = levels_of(attack, concept)[-1]
        places.append((", ".join(filter(None, (attack.name, attack.words(level)))), (attack.name, level)))
    both = [(name, [_score(at(rows[model], place)) for model in MODELS]) for name, place in places]
    return [Verdict(name, plain, meta) for name, (plain, meta) in both if plain is not None and meta is not None]


def _score(rows: Sequence[Measured]) -> Pooled | None:
    return next((score for name in SCORES if (score := pooled(rows, name)) is not None), None)


def page(found: Found, out: Path) -> str:
    """The page; its chart is written beside ``out``."""
    (concept,) = found.grid.concepts
    judged = verdicts(found, concept)
    attacked = [one for one in judged[1:] if max(one.plain.value, one.meta.value) > HARMLESS]
    helped = [one for one in attacked if one.words == "helps"]
    parts = [
        "# Every attack on Canvas",
        f"`metaunlearn bench {found.bench} --out runs/table1`, then `python benchmarks/every_attack.py "
        f"runs/table1/{found.bench}/results.json`: {concept.name}, seeds {', '.join(map(str, concept.seeds))}, "
        f"`{found.grid.methods[0]}` at the settings of the recipe `{found.grid.recipe}`, {len(found.rows)} of "
        f"{found.rows_in_all} states, torch {found.versions['torch']}. What each attack sets is in the recipe "
        f"(`metaunlearn recipes show {found.bench}`).",
        f"The percentage of pictures that show the {concept.name} after the last step, or strength, of each attack "
        "(of UnlearnDiffAtk: of prompts that are made to), all seeds together, with Wilson's 95 % interval. "
        f"Meta-unlearning *helps* where the intervals lie apart: against {len(helped)} of the {len(attacked)} attacks "
        f"that bring the {concept.name} back at all; there the mean of meta / plain is "
        f"{mean(one.meta.value / one.plain.value for one in helped):.2f}."
        if helped else "Meta-unlearning helps against none of them.",
        in_markdown(HEADS, [one.line for one in judged]),
    ]  # fmt: skip
    for survey in surveys(found, concept):
        file = out.with_suffix(".svg")
        file.write_text(as_file(survey.svg))
        parts.append(f"![{survey.description}]({file.name})\n\nRound: plainly unlearned; diamond: meta-unlearned.")
    parts += ["## All figures", NOTE]
    parts += [f"### {table.title}\n\n{to_markdown(table)}" for table in concept_tables(found, concept)]
    return "\n\n".join(parts) + "\n"


def _interval(score: Pooled) -> str:
    return f"{score.value:.0f} [{score.low:.0f}, {score.high:.0f}]"


def _quotient(meta: float, plain: float) -> str:
    return f"{meta / plain:.2f}" if plain else "–"


if __name__ == "__main__":
    main()
