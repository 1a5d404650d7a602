"""``docs/every-attack.md``: what every attack brings back, plainly unlearned and meta-unlearned, from a grid.

metaunlearn bench attacks-canvas --out runs/table1
python benchmarks/every_attack.py runs/table1/attacks-canvas/results.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from grids import read

from metaunlearn.bench.entries import at
from metaunlearn.bench.formats import in_markdown
from metaunlearn.bench.lines import by_line
from metaunlearn.bench.recipe import GridConcept, ModelName, levels_of
from metaunlearn.bench.results import Found, Measured, Pooled, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.bench.tables import NOTE, concept_tables, section
from metaunlearn.files import write_atomic
from metaunlearn.report.charts import as_file
from metaunlearn.report.grid.survey import SCORES, surveys

MODELS: tuple[ModelName, ModelName] = ("unlearn", "meta-unlearn")
HEADS = ("attack", "plainly unlearned", "meta-unlearned", "meta / plain", "by seed", "meta-unlearning")
HARMLESS = 5.0
"""Percent that neither model shows more than: such an attack does not bring the concept back."""
HELPS, WORSE, ALIKE, NOTHING = "helps", "**is worse**", "**no difference seen**", "nothing to hold: neither shows it"


@dataclass(frozen=True)
class Reached:
    """The most that an attack brings out of a model, at any of its checkpoints or strengths."""

    score: Pooled
    level: str
    """Where, in words; empty for an attack of one level."""

    def __str__(self) -> str:
        figure = f"{self.score.value:.0f} [{self.score.low:.0f}, {self.score.high:.0f}]"
        return f"{figure} ({self.level})" if self.level else figure


@dataclass(frozen=True)
class Verdict:
    """What one attack brings out of both models."""

    name: str
    plain: Reached
    meta: Reached

    @property
    def ratio(self) -> str:
        """Meta over plain."""
        return _quotient(self.meta.score.value, self.plain.score.value)

    @property
    def by_seed(self) -> str:
        """The same, of each seed that both have."""
        plain, meta = self.plain.score.by_seed, self.meta.score.by_seed
        return ", ".join(_quotient(meta[seed], plain[seed]) for seed in plain if seed in meta)

    @property
    def words(self) -> str:
        """Whether meta-unlearning helps: where the intervals lie apart."""
        plain, meta = self.plain.score, self.meta.score
        if max(meta.value, plain.value) <= HARMLESS:
            return NOTHING
        if meta.high < plain.low:
            return HELPS
        return WORSE if meta.low > plain.high else ALIKE

    @property
    def line(self) -> list[str]:
        """In the table."""
        return [self.name, str(self.plain), str(self.meta), self.ratio, self.by_seed, self.words]


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
    attacks = [("before any attack", {(BEFORE, 0.0): ""})]
    for attack in found.grid.attacks:
        places = {(attack.name, level): attack.words(level) for level in levels_of(attack, concept)}
        attacks.append((attack.name, places))
    both = [(name, [_most(rows[model], places) for model in MODELS]) for name, places in attacks]
    return [Verdict(name, plain, meta) for name, (plain, meta) in both if plain is not None and meta is not None]


def _most(rows: Sequence[Measured], places: Mapping[tuple[str, float], str]) -> Reached | None:
    reached = [
        Reached(score, words)
        for place, words in places.items()
        for name in SCORES
        if (score := pooled(at(rows, place), name)) is not None
    ]
    return max(reached, key=lambda one: one.score.value, default=None)


def page(found: Found, out: Path) -> str:
    """The page; its chart is written beside ``out``."""
    (concept,) = found.grid.concepts
    judged = verdicts(found, concept)
    attacked = [one for one in judged[1:] if one.words != NOTHING]
    helped = [one for one in attacked if one.words == HELPS]
    parts = [
        "# Every attack on Canvas",
        f"`metaunlearn bench {found.bench} --out runs/table1`, then `python benchmarks/every_attack.py "
        f"runs/table1/{found.bench}/results.json`: {concept.name}, seeds {', '.join(map(str, concept.seeds))}, "
        f"`{found.grid.methods[0]}` at the settings of the recipe `{found.grid.recipe}`, {len(found.rows)} of "
        f"{found.rows_in_all} states, torch {found.versions['torch']}. What each attack sets is in the recipe "
        f"(`metaunlearn recipes show {found.bench}`).",
        f"The highest percentage of pictures that show the {concept.name} at any of an attack's checkpoints or "
        "strengths (of UnlearnDiffAtk: of prompts that are made to), all seeds together, with Wilson's 95 % interval. "
        f"Meta-unlearning *helps* where the intervals lie apart: against {len(helped)} of the {len(attacked)} attacks "
        f"that bring the {concept.name} back at all; there the mean of meta / plain is "
        f"{mean(one.meta.score.value / one.plain.score.value for one in helped):.2f}."
        if helped else "Meta-unlearning helps against none of them.",
        in_markdown(HEADS, [one.line for one in judged]),
    ]  # fmt: skip
    for survey in surveys(found, concept):
        file = out.with_suffix(".svg")
        file.write_text(as_file(survey.svg), encoding="utf-8")
        parts.append(f"![{survey.description}]({file.name})\n\nRound: plainly unlearned; diamond: meta-unlearned.")
    parts += ["## All figures", NOTE]
    parts += [section(table, "###") for table in concept_tables(found, concept)]
    return "\n\n".join(parts) + "\n"


def _quotient(meta: float, plain: float) -> str:
    return f"{meta / plain:.2f}" if plain else "–"


if __name__ == "__main__":
    main()
