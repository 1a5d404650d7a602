"""Measured rows as the lines of a table: a model by one method in one variant; and which lines are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from metaunlearn.bench.recipe import ModelName, steps_of
from metaunlearn.bench.results import Found, Measured


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    method: str
    """Empty for the original model."""
    variant: str
    model: ModelName

    @property
    def title(self) -> str:
        """Its method, with the variant where there are some."""
        return f"{self.method}, {self.variant}" if self.variant else self.method or self.model


@dataclass(frozen=True)
class Ratio:
    """How much of a concept the malicious attacks bring back: means over the checkpoints that both models have."""

    line: Line
    """The meta-unlearned one."""
    concept: str
    seed: int
    meta: float
    """Of the meta-unlearned model, in percent."""
    plain: float
    """Of the plainly unlearned one, in percent."""
    whole: bool
    """Whether these are all checkpoints that the grid has; else later ones, where more comes back, are missing."""

    @property
    def value(self) -> float | None:
        """meta / plain, lower is better; None where the plain model shows the concept in no picture."""
        return self.meta / self.plain if self.plain else None


def by_line(rows: Iterable[Measured]) -> dict[Line, list[Measured]]:
    """``rows`` by the line that they stand in, in the order in which the lines begin."""
    found: dict[Line, list[Measured]] = {}
    for measured in rows:
        row = measured.row
        found.setdefault(Line(row.method, row.variant, row.model), []).append(measured)
    return found


def names_of(lines: Iterable[Line]) -> tuple[list[str], dict[Line, list[str]]]:
    """The first columns of a table of ``lines``: heads, and each line's words; without variants none for them."""
    lines = list(lines)
    variants = any(line.variant for line in lines)

    def words(method: str, variant: str, model: str) -> list[str]:
        return [method, *([variant] if variants else []), model]

    return words("method", "variant", "model"), {
        line: words(line.method or "(none)", line.variant, line.model) for line in lines
    }


def plain_of(line: Line, lines: Iterable[Line]) -> Line | None:
    """The plainly unlearned line to set ``line`` against: that of the same variant, or the only one of its method."""
    others = [other for other in lines if (other.method, other.model) == (line.method, "unlearn")]
    same = [other for other in others if other.variant == line.variant]
    return same[0] if same else others[0] if len(others) == 1 else None


def pairs_of(lines: Sequence[Line]) -> list[list[Line]]:
    """What is shown together: each meta-unlearned line behind the plain one that it is set against; others alone."""
    pairs = []
    for line in lines:
        if line.model == "meta-unlearn":
            plain = plain_of(line, lines)
            pairs.append([plain, line] if plain else [line])
    paired = {line for pair in pairs for line in pair}
    return pairs + [[line] for line in lines if line.model == "unlearn" and line not in paired]


def ratios(found: Found) -> list[Ratio]:
    """One for each method, variant, concept and seed for which both models were attacked."""
    concepts = {concept.name: concept for concept in found.grid.concepts}
    malicious = {attack.name: attack for attack in found.grid.attacks if attack.malicious}
    places: dict[tuple[str, int], list[Measured]] = {}
    for measured in found.rows:
        if measured.row.attack in malicious and "concept" in measured.scores:
            places.setdefault((measured.row.concept, measured.row.seed), []).append(measured)
    pairs = []
    for (concept, seed), rows in places.items():
        lines = by_line(rows)
        in_all = sum(len(steps_of(attack, concepts[concept])) for attack in malicious.values())
        for line, mine in lines.items():
            plain = plain_of(line, lines) if line.model == "meta-unlearn" else None
            if plain is None:
                continue
            meta, unlearn = _shared(mine, lines[plain])
            if meta:
                pairs.append(Ratio(line, concept, seed, mean(meta), mean(unlearn), len(meta) == in_all))
    return pairs


def _shared(*rows: Sequence[Measured]) -> tuple[list[float], list[float]]:
    """Percentages of both at the checkpoints that both have."""
    first, second = (
        {(found.row.attack, found.row.step): found.scores["concept"]["value"] for found in one} for one in rows
    )
    both = [place for place in first if place in second]
    return [first[place] for place in both], [second[place] for place in both]
