"""``docs/ladder.md``: what each change from the paper's objective to the default buys, and what it costs.

metaunlearn bench ladder-canvas --out runs/table1
python benchmarks/ladder.py runs/table1/ladder-canvas/results.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grids import CHOSEN_ON, UNTOUCHED, Scores, curve, in_steps, read, scores_of, seen

from metaunlearn.bench.formats import in_markdown
from metaunlearn.bench.recipe import steps_of
from metaunlearn.bench.results import Found
from metaunlearn.files import write_atomic
from metaunlearn.recipe import read_recipe
from metaunlearn.report.charts import Frame, as_file, draw
from metaunlearn.report.data import ModelName
from metaunlearn.report.scatter import axis, percent_axis, points, words

FRAME = Frame(width=560, height=280, left=56, right=24, top=24)
COLOURS = {"unlearn": "var(--unlearn)", "meta-unlearn": "var(--meta)"}
SHAPES = {"unlearn": "circle", "meta-unlearn": "diamond"}
LABELS = {"unlearn": -9, "meta-unlearn": 9}
"""Pixels from a point to its number: to the left of plain models, to the right of the others."""


@dataclass(frozen=True)
class Rung:
    """One model on the way."""

    number: int
    variant: str
    model: ModelName
    scores: Scores

    @property
    def kept(self) -> dict[str, float]:
        """What was measured before any attack."""
        return self.scores[UNTOUCHED]


def main() -> None:
    """Read, draw, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="results.json of the ladder's grid")
    parser.add_argument("--out", type=Path, default=Path("docs/ladder.md"))
    options = parser.parse_args()
    (found,) = read([options.results])
    drawing = options.out.with_suffix(".svg")
    write_atomic(drawing, figure(list(rungs(found)), original(found)["fid"]))
    write_atomic(options.out, page(found, drawing.name))


def rungs(found: Found) -> Iterator[Rung]:
    """The models that are measured in full, in the recipe's order."""
    (method,), (concept,) = found.grid.methods, found.grid.concepts
    (attack,) = found.grid.attacks
    places = {UNTOUCHED, *((attack.name, step) for step in steps_of(attack, concept))}
    for number, variant in enumerate(found.grid.variants, 1):
        scores = scores_of(found, concept.name, concept.seeds[0], method=method, variant=variant.name)
        for model in ("unlearn", "meta-unlearn"):
            if scores.get(model, {}).keys() == places:
                yield Rung(number, variant.name, model, scores[model])


def original(found: Found) -> dict[str, float]:
    """What was measured of the model from which nothing is erased."""
    (row,) = (measured for measured in found.rows if measured.row.model == "original")
    return {name: score["value"] for name, score in row.scores.items()}


def page(found: Found, drawing: str) -> str:
    """The page; its drawing lies beside it."""
    (method,), (concept,) = found.grid.methods, found.grid.concepts
    start, steps = original(found), steps_of(found.grid.attacks[0], concept)
    lines = [
        [
            f"{rung.number}. {rung.variant}" if rung.model == "meta-unlearn" else f"{rung.number}, plain",
            *(f"{rung.kept[name]:.1f}" for name in ("unrelated", "related", "clip_score")), f"{rung.kept['fid']:.2f}",
            *(f"{value:.0f}" for value in [rung.kept["concept"], *seen(rung.scores, CHOSEN_ON)]), _half(rung, start),
        ]
        for rung in rungs(found)
    ]  # fmt: skip
    untouched = ["(original)", *(f"{start[name]:.1f}" for name in ("unrelated", "related", "clip_score"))]
    heads = ["", "unrelated", "related", "CLIP score", "FID", "0", *map(str, steps), "steps to half"]
    parts = [
        "# What each change buys",
        f"`metaunlearn bench {found.bench} --out runs/table1`, then `python benchmarks/ladder.py "
        f"runs/table1/{found.bench}/results.json`: {concept.name}, seed {concept.seeds[0]}, `{method}`, "
        f"{len(found.rows)} of {found.rows_in_all} states, torch {found.versions['torch']}. The columns with numbers "
        f"have the percentage of 100 pictures that show the concept after so many steps of {CHOSEN_ON}. One seed, so "
        "ten points more or less are chance. A plain model is as long trained, with the same pictures retained, as the "
        "next one below it.",
        in_markdown(heads, [[*untouched, f"{start['fid']:.2f}", f"{start['concept']:.0f}"] + [""] * 8, *lines]),
        "What a line with the meta objective changes beside the one before it; where it is more than one setting, "
        "which of them did it was not measured:\n\n" + "\n".join(changes(found)),
        f"![Across, what was lost before any attack; upwards, how often the concept is seen.]({drawing})",
        "Across: the FID before any attack above the original's, in percent. Upwards: how often the concept is seen, "
        f"on average over {steps[-1]} steps of the attack (the area under the curve). Circles are plain models, "
        "diamonds have the meta objective; the numbers are the table's.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def changes(found: Found) -> Iterator[str]:
    """A line of a list for each rung: the settings that differ from the rung's before it."""
    base = read_recipe(found.grid.recipe).erase
    before: dict[str, Any] = {}
    for number, variant in enumerate(found.grid.variants, 1):
        now = {**base, **variant.set}
        changed = [f"{key} = {value}" for key, value in now.items() if before and before.get(key) != value]
        yield f"{number}. {', '.join(f'`{one}`' for one in changed) or 'the start'}"
        before = now


def _half(rung: Rung, start: dict[str, float]) -> str:
    return in_steps(curve(rung.scores).steps_to(start["concept"] / 2))


def figure(drawn: list[Rung], fid: float) -> str:
    """A whole SVG file."""
    rungs_drawn = [
        {
            "lost": 100 * (rung.kept["fid"] / fid - 1), "back": curve(rung.scores).area(),
            "number": str(rung.number), "model": rung.model,
        }
        for rung in drawn
    ]  # fmt: skip
    symlog = {"type": "symlog", "constant": 5}  # One rung loses ten times more than the others.
    ticks = [0, 5, 10, 20, 50, 100]
    place = {
        "x": axis("lost", "FID before any attack, above the original's (%)", scale=symlog, grid=False, values=ticks),
        "y": percent_axis("back", "shows the concept, on average under attack (%)"),
    }
    layers: list[dict[str, Any]] = []
    for model, colour in COLOURS.items():
        mine = [point for point in rungs_drawn if point["model"] == model]
        layers.append(points(mine, place, colour, 70, shape=SHAPES[model]))
        layers.append(words(mine, place, "number", colour, dx=LABELS[model], dy=-8, align="center"))
    return as_file(draw({"layer": layers}, FRAME))


if __name__ == "__main__":
    main()
