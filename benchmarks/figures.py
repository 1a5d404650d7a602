"""``docs/figures.md``: the paper's figures that are pictures, on Canvas, as drawings beside the page.

metaunlearn bench figure4-canvas --out runs/table1
python benchmarks/figures.py runs/table1/figure4-canvas runs/table1/figure5-canvas ...
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

from grids import read
from markupsafe import Markup

from metaunlearn.bench.results import Found
from metaunlearn.bench.state import BEFORE
from metaunlearn.files import write_atomic
from metaunlearn.report.charts import as_file
from metaunlearn.report.grid.pictures import concept_pictures
from metaunlearn.report.grid.trends import trends
from metaunlearn.report.pictures import Grid, Shot, Strip
from metaunlearn.report.story import MODEL_TITLES
from metaunlearn.runs import RESULTS_FILE

SIDE, GAP, LINE, MARGIN = 64, 4, 16, 12
"""Pixels: of a picture, between pictures, of a line of words, around everything."""
LABEL = 190
"""Width of the words to the left of a row of pictures."""
COLOURS = {"original": "var(--original)", "unlearn": "var(--unlearn)", "meta-unlearn": "var(--meta)"}


def main() -> None:
    """Read each grid, draw its pictures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a grid's folder in --out of bench")
    parser.add_argument("--out", type=Path, default=Path("docs/figures.md"))
    options = parser.parse_args()
    found = read([folder / RESULTS_FILE for folder in options.folders])
    parts = [
        part
        for one, folder in zip(found, options.folders, strict=True)
        for part in section(one, folder.parent, options.out)
    ]
    calls = " ".join(f"runs/table1/{one.bench}" for one in found)
    head = [
        "# The paper's figures on Canvas",
        f"`python benchmarks/figures.py {calls}`, of the grids that the sections name. The pictures of a row have the "
        "same prompts and seeds as those of every other row of their block; the first of those that were measured, not "
        "the best.",
    ]
    write_atomic(options.out, "\n\n".join([*head, *parts]) + "\n")


def section(found: Found, cells: Path, page: Path) -> Iterator[str]:
    """The Markdown of one grid, its drawing beside ``page``; ``cells``: ``--out`` of bench."""
    yield f"## {found.bench}"
    yield (
        f"{found.description} Settings of the recipe `{found.grid.recipe}`, but for what `metaunlearn recipes show "
        f"{found.bench}` says. `metaunlearn bench {found.bench} --out runs/table1`"
    )
    blocks = [(f"{concept}: {grid.title}", grid) for concept, grids in concept_pictures(found, cells) for grid in grids]
    name = f"{page.stem}-{Path(found.bench).stem}"
    if blocks:
        drawing = page.parent / f"{name}.svg"
        write_atomic(drawing, as_file(drawn(blocks)))
        yield f"![{'; '.join(title for title, _ in blocks)}]({drawing.name})"
    for place, trend in enumerate(trends(found, cells)):
        drawing = page.parent / f"{name}-{place}.svg"
        write_atomic(drawing, as_file(trend.svg))
        yield f"![{trend.description}]({drawing.name})"
        yield trend.description


def drawn(blocks: Sequence[tuple[str, Grid]]) -> Markup:
    """An SVG of all blocks below each other: a title and rows of pictures."""
    across = max(LABEL + len(shots) * (SIDE + GAP) for _, grid in blocks for _, _, shots in rows(grid))
    svg = ElementTree.Element("svg", {"font-family": "sans-serif"})
    ElementTree.SubElement(svg, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    y = MARGIN
    for title, grid in blocks:
        y += LINE
        words(svg, MARGIN, y, title, size=14, weight="bold")
        y += GAP * 2
        for (first, second), model, shots in rows(grid):
            words(svg, MARGIN, y + SIDE // 2 - 2, first, colour=COLOURS[model], weight="bold")
            words(svg, MARGIN, y + SIDE // 2 + LINE - 2, second)
            for place, shot in enumerate(shots):
                x = MARGIN + LABEL + place * (SIDE + GAP)
                picture = {"x": str(x), "y": str(y), "width": str(SIDE), "height": str(SIDE)}
                image = ElementTree.SubElement(svg, "image", picture | {"href": shot.picture.uri})
                ElementTree.SubElement(image, "title").text = shot.alt
            y += SIDE + GAP
        y += LINE
    width = across + 2 * MARGIN
    svg.attrib |= {"width": str(width), "height": str(y), "viewBox": f"0 0 {width} {y}"}
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def rows(grid: Grid) -> list[tuple[tuple[str, str], str, list[Shot]]]:
    """Words, model and pictures of each row: a state's, or where a state shows one picture, all states' of a model."""
    if any(len(strip.shots) > 1 for strip in grid.strips):
        return [((said(strip.model), level(strip)), strip.model, strip.shots) for strip in grid.strips]
    together = []
    for model, group in groupby(grid.strips, key=lambda strip: strip.model):
        strips = list(group)
        shots = [shot for strip in strips for shot in strip.shots]
        together.append(((said(model), f"{level(strips[0])} to {level(strips[-1])}"), model, shots))
    return together


def said(model: str) -> str:
    """A model in words."""
    return MODEL_TITLES[model].lower()


def level(strip: Strip) -> str:
    """Of the attack."""
    return BEFORE if strip.attack == BEFORE else f"{strip.attack}, {strip.level}"


def words(
    svg: ElementTree.Element,
    x: int,
    y: int,
    text: str,
    *,
    size: int = 12,
    colour: str = "var(--ink)",
    weight: str = "normal",
) -> None:
    """Add a line of words; (x, y) is where its first letter stands."""
    place = {"x": str(x), "y": str(y), "font-size": str(size), "fill": colour, "font-weight": weight}
    ElementTree.SubElement(svg, "text", place).text = text


if __name__ == "__main__":
    main()
