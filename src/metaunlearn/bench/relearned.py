"""A concept's relearning curves in numbers: what each attack that trains brings back, and how soon."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch

from metaunlearn.attacks.registry import leaves_pictures
from metaunlearn.bench.attacks import BENIGN, GridAttack
from metaunlearn.bench.entries import at
from metaunlearn.bench.formats import Entry, Table, slug
from metaunlearn.bench.lines import by_line, names_of
from metaunlearn.bench.recipe import GridConcept, levels_of
from metaunlearn.bench.results import EACH, Found, Measured, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.metrics.relearning import Curve, Relearning, relearning, soonest, worst_case

SEED = 0
"""Of the bootstrap."""
WHAT = ("on average (%)", "half back")
"""The columns of each attack."""
NOTE = (
    "On average: the curve's mean height over the attack's length. Half back: the step at which half of what the "
    "original shows is back, on a straight line between two checkpoints. Both of all seeds' pictures together, in "
    "brackets 95 % bootstrap intervals over pictures. Worst: the most that any malicious attack on the weights has "
    "brought back at any of its checkpoints or strengths."
)


def relearning_tables(found: Found, concept: GridConcept) -> list[Table]:
    """One, a line for each attacked model; none where no attack that trains is measured."""
    rows = [measured for measured in found.rows if measured.row.concept == concept.name]
    original = pooled([measured for measured in rows if measured.row.model == "original"], "concept")
    lines = {line: mine for line, mine in by_line(rows).items() if line.model != "original"}
    curves = {line: _curves(found, concept, mine) for line, mine in lines.items()}
    trained = [attack.name for attack in found.grid.attacks if attack.trains]
    if original is None or not any(name in those for those in curves.values() for name in trained):
        return []
    longest = max(curve.limit for those in curves.values() for name, curve in those.items() if name in trained)
    heads, names = names_of(lines)
    cells = []
    for line, mine in lines.items():
        numbers = [_numbers(mine, attack, curves[line].get(attack), original.value) for attack in trained]
        worst = _worst(found.grid.attacks, curves[line], original.value, longest)
        cells.append([*map(Entry, names[line]), *(entry for pair in numbers for entry in pair), *worst])
    columns = [f"{attack}: {what}" for attack in trained for what in WHAT]
    return [
        Table(
            name=f"{slug(concept.name)}-relearning", title=f"{concept.name}: relearning in numbers", note=NOTE,
            heads=[*heads, *columns, "worst (%)", "half back first"], named=len(heads), rows=cells,
        )
    ]  # fmt: skip


def _curves(found: Found, concept: GridConcept, mine: list[Measured]) -> dict[str, Curve]:
    """By attack, those of which two points at least are measured, each for the same seeds; from before the attack.

    Strengths have no order in time: they are numbered, and only the curve's height means something.
    """
    curves = {}
    for attack in found.grid.attacks:
        levels = [level for level in levels_of(attack, concept) if at(mine, (attack.name, level))]
        places = [(BEFORE, 0.0), *((attack.name, level) for level in levels)]
        points = [score for place in places if (score := pooled(at(mine, place), "concept")) is not None]
        if len(points) == len(places) > 1 and len({tuple(score.by_seed) for score in points}) == 1:
            steps = [0, *map(int, levels)] if attack.trains else range(len(points))
            curves[attack.name] = Curve(tuple(steps), tuple(score.value for score in points))
    return curves


def _numbers(mine: list[Measured], attack: str, curve: Curve | None, original: float) -> tuple[Entry, Entry]:
    """The curve's mean height, and when half is back."""
    if curve is None:
        return Entry(), Entry()
    places = [(BEFORE, 0.0), *((attack, float(step)) for step in curve.steps[1:])]
    each = tuple(_each(at(mine, place)) for place in places)
    if not each[0] or len({len(seen) for seen in each}) > 1:  # Cells that do not say it of the same pictures.
        height, half = curve.area(), curve.steps_to(original / 2)
        return Entry(f"{height:.1f}", height), Entry(_step(half, curve), _sorted_by(half, curve.limit))
    numbers = _bootstrapped(curve.steps, each, original)
    area, half = numbers.area, numbers.steps_to_half
    low, high = _step(numbers.half_low, curve), _step(numbers.half_high, curve)
    return (
        Entry(f"{area.value:.1f}", area.value, f"{area.low:.1f}", f"{area.high:.1f}"),
        Entry(_step(half, curve), _sorted_by(half, curve.limit), low, high),
    )


def _each(rows: Sequence[Measured]) -> str:
    """0 or 1 for every picture, seed after seed; empty where a cell does not say it."""
    ordered = sorted(rows, key=lambda measured: measured.row.seed)
    found = [measured.scores["concept"].get(EACH, "") for measured in ordered]
    return "".join(found) if all(found) else ""


@functools.lru_cache(maxsize=4096)  # The tables are written again after every cell of a grid.
def _bootstrapped(steps: tuple[int, ...], each: tuple[str, ...], original: float) -> Relearning:
    hits = torch.tensor([[int(seen) for seen in one] for one in each], dtype=torch.uint8)
    return relearning(steps, hits, original, torch.Generator().manual_seed(SEED))


def _worst(
    attacks: Sequence[GridAttack], curves: Mapping[str, Curve], original: float, longest: int
) -> tuple[Entry, Entry]:
    """The most that a malicious attack on the weights brings back, and which one has half back first.

    ``longest`` is the last step of any model's curve.
    """
    harmful = [
        attack
        for attack in attacks
        if attack.name in curves and attack.data != BENIGN and not leaves_pictures(attack.kind)
    ]
    if not harmful:
        return Entry(), Entry()
    # What was there before an attack, none has brought back.
    under = {attack.name: curves[attack.name] for attack in harmful}
    name, most = worst_case({name: Curve(curve.steps[1:], curve.scores[1:]) for name, curve in under.items()})
    timed = {attack.name: curves[attack.name] for attack in harmful if attack.trains}
    first = soonest(timed, original)
    never = Entry("not reached", _sorted_by(None, longest))
    half = never if first is None else Entry(f"{first[1]:.0f}", first[1], note=first[0])
    return Entry(f"{most:.1f}", most, note=name), half if timed else Entry()


def _step(step: float | None, curve: Curve) -> str:
    return f"> {curve.limit}" if step is None else f"{step:.0f}"


def _sorted_by(step: float | None, limit: int) -> float:
    """``step``; one that is not reached lies behind all up to ``limit``."""
    return math.nextafter(limit, math.inf) if step is None else step
