"""``tables.md`` and ``table.csv``: a grid in the shape of the paper's Tables 1 and 2."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from metaunlearn.bench.plan import BEFORE
from metaunlearn.bench.published import published_sections
from metaunlearn.bench.recipe import GridConcept
from metaunlearn.bench.results import PERCENTAGES, Measured, Pooled, Results, pooled

Columns = list[tuple[str, int]]
"""(attack, step) of each column."""

NOTE = (
    "Percentages: pictures in which the judge sees what the column says, of all pictures of all seeds together, with "
    "Wilson's 95 % interval. The interval tells of the number of pictures; how differently two trainings end, the "
    "seeds' own values tell. FID and CLIP score: mean over the seeds [lowest, highest], with the judge's own features, "
    "so comparable among themselves only."
)


@dataclass(frozen=True)
class Line:
    """One line of a table: a model by one method in one variant."""

    method: str
    variant: str
    model: str


def markdown(results: Results) -> str:
    """Everything measured so far, as Markdown."""
    grid, rows = results.recipe.grid, results.rows()
    done, total = len(rows), len(results.plan.rows)
    parts = [
        f"# {results.recipe.name}", results.recipe.description,
        f"Written by `metaunlearn bench {results.recipe.name}`: {done} of {total} states are measured. "
        f"Base model {grid.base}, settings of the recipe {grid.recipe}. {NOTE}",
    ]  # fmt: skip
    for concept in grid.concepts:
        mine = [measured for measured in rows if measured.row.concept == concept.name]
        if mine:
            parts += _concept(results, concept, mine)
    ratios = _ratios(results, rows)
    if ratios:
        parts += [
            "## meta / plain",
            "How much of the concept the malicious attacks bring back: the mean over their checkpoints in the "
            "meta-unlearned model, divided by that in the plainly unlearned one (both means in brackets, in percent).",
            ratios,
        ]
    parts += published_sections(grid.published)
    return "\n\n".join(parts) + "\n"


def _concept(results: Results, concept: GridConcept, rows: list[Measured]) -> list[str]:
    columns = _columns(results, concept)
    names = [_column(*place) for place in columns]
    attacked = [place for place in columns[1:] if place[1] == max(s for a, s in columns[1:] if a == place[0])]
    seeds = ", ".join(map(str, concept.seeds))

    def cell(found: list[Measured], place: tuple[str, int], name: str, digits: int = 1) -> str:
        return _cell(pooled(_at(found, place), name), len(concept.seeds), digits)

    def concept_cell(found: list[Measured]) -> list[str]:
        return [cell(found, place, "concept") for place in columns]

    def seed_cell(found: list[Measured]) -> list[str]:
        return [_by_seed(pooled(_at(found, place), "concept"), concept.seeds) for place in columns]

    def kept(found: list[Measured]) -> list[str]:
        cells = [cell(found, columns[0], name) for name in ("related", "unrelated")]
        cells += [cell(found, columns[0], name, digits=3) for name in ("clip_score", "fid")]
        return cells + [cell(found, place, name) for place in attacked for name in ("related", "unrelated")]

    heads = ["related", "unrelated", "CLIP score", "FID"]
    heads += [f"{name}, {_column(*place)}" for place in attacked for name in ("related", "unrelated")]
    parts = [
        f"## {concept.name}: how often it is seen (%)", _table(rows, names, concept_cell),
        f"### {concept.name}: what is kept, before any attack and after its last step", _table(rows, heads, kept),
    ]  # fmt: skip
    if len(concept.seeds) > 1:
        parts += [f"### {concept.name}: the same as the first table, by seed ({seeds})", _table(rows, names, seed_cell)]
    return parts


def _columns(results: Results, concept: GridConcept) -> Columns:
    attacks = results.recipe.grid.attacks
    return [(BEFORE, 0)] + [(attack.name, step) for attack in attacks for step in attack.steps or concept.steps]


def _column(attack: str, step: int) -> str:
    return attack if attack == BEFORE else f"{attack} {step}"


def _at(rows: Iterable[Measured], place: tuple[str, int]) -> list[Measured]:
    return [measured for measured in rows if (measured.row.attack, measured.row.step) == place]


def _lines(rows: Iterable[Measured]) -> dict[Line, list[Measured]]:
    found: dict[Line, list[Measured]] = {}
    for measured in rows:
        row = measured.row
        found.setdefault(Line(row.method, row.variant, row.model), []).append(measured)
    return found


def _table(rows: list[Measured], columns: Sequence[str], cells: Callable[[list[Measured]], list[str]]) -> str:
    variants = any(measured.row.variant for measured in rows)
    heads = ["method", *(["variant"] if variants else []), "model", *columns]
    lines = []
    for line, found in _lines(rows).items():
        lines.append([line.method or "(none)", *([line.variant] if variants else []), line.model, *cells(found)])
    return markdown_table(heads, lines)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all but the first column to the right."""
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(found: Pooled | None, seeds: int, digits: int = 1) -> str:
    if found is None:
        return ""
    missing = "" if len(found.by_seed) == seeds else f" ({len(found.by_seed)} of {seeds} seeds)"
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]{missing}"


def _by_seed(found: Pooled | None, seeds: Sequence[int]) -> str:
    if found is None:
        return ""
    return ", ".join(f"{found.by_seed[seed]:.1f}" if seed in found.by_seed else "–" for seed in seeds)


def _ratios(results: Results, rows: Sequence[Measured]) -> str:
    """A line for each method and variant, a column for each concept and seed."""
    malicious = {attack.name for attack in results.recipe.grid.attacks if attack.malicious}
    wanted = [measured for measured in rows if measured.row.attack in malicious]
    lines: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for line, found in _lines(wanted).items():
        if line.model != "meta-unlearn":
            continue
        for place in dict.fromkeys((measured.row.concept, measured.row.seed) for measured in found):
            text = _ratio(line, [measured for measured in wanted if (measured.row.concept, measured.row.seed) == place])
            if text:
                lines.setdefault((line.method, line.variant), {})[place] = text
    places = list(dict.fromkeys(place for cells in lines.values() for place in cells))
    heads = ["method", "variant", *(f"{concept}, seed {seed}" for concept, seed in sorted(places))]
    return markdown_table(
        heads, [[*key, *(cells.get(place, "") for place in sorted(places))] for key, cells in lines.items()]
    ) if lines else ""  # fmt: skip


def _ratio(line: Line, rows: list[Measured]) -> str:
    """Both means over the checkpoints that both models have.

    The plain model is that of the same variant, or the only one of its method.
    """
    by_line = _lines(rows)
    plain = Line(line.method, line.variant, "unlearn")
    if plain not in by_line:
        others = [other for other in by_line if (other.method, other.model) == (line.method, "unlearn")]
        if len(others) != 1:
            return ""
        plain = others[0]
    curves = [
        {(found.row.attack, found.row.step): found.scores["concept"]["value"] for found in by_line[one]}
        for one in (line, plain)
    ]
    both = curves[0].keys() & curves[1].keys()
    if not both:
        return ""
    meta, unlearn = (mean(curve[place] for place in both) for curve in curves)
    return f"{meta / unlearn:.2f} ({meta:.1f} / {unlearn:.1f})" if unlearn else f"– ({meta:.1f} / 0)"


def as_csv(results: Results) -> str:
    """One line for each score of each row, and one for all seeds together."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([
        "concept", "method", "variant", "model", "attack", "step", "seed", "score", "value", "low", "high", "n",
    ])  # fmt: skip
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for measured in results.rows():
        row = measured.row
        groups.setdefault((row.concept, row.method, row.variant, row.model, row.attack, row.step), []).append(measured)
    for place, found in groups.items():
        for name in (*PERCENTAGES, "clip_score", "fid"):
            for measured in found:
                if name in measured.scores:
                    score = measured.scores[name]
                    figures = [round(score[key], 4) for key in ("value", "low", "high")]
                    writer.writerow([*place, measured.row.seed, name, *figures, score["n"]])
            together = pooled(found, name)
            if together is not None:
                facts = asdict(together)
                figures = [round(facts[key], 4) for key in ("value", "low", "high")]
                writer.writerow([*place, "all", name, *figures, together.n])
    return out.getvalue()
