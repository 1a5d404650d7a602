"""The tables of a grid, in the shape of the paper's Tables 1 and 2, and ``tables.md`` with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean

from metaunlearn.bench.beside import BESIDE, beside_tables
from metaunlearn.bench.counterparts import NSFW, metric_of
from metaunlearn.bench.entries import at, entry_of
from metaunlearn.bench.formats import Entry, Table, slug, to_markdown, turned
from metaunlearn.bench.lines import by_line, names_of, ratios
from metaunlearn.bench.published import differs, published_tables
from metaunlearn.bench.recipe import Grid, GridConcept, levels_of
from metaunlearn.bench.relearned import relearning_tables
from metaunlearn.bench.results import SCORES, Found, Measured, Pooled, other_scores, pooled
from metaunlearn.bench.state import BEFORE

WIDE = 24
"""A table of more columns is turned, if it has fewer lines than columns."""
Columns = list[tuple[str, float]]
"""(attack, steps or strength) of each column."""

NOTE = (
    "Percentages: pictures in which the judge sees what the column says, of all pictures of all seeds together, with "
    "Wilson's 95 % interval. The interval tells of the number of pictures; how differently two trainings end, the "
    "seeds' own values tell. FID and CLIP score: mean over the seeds [lowest, highest], of one seed its 95 % interval, "
    "with the judge's own features, so comparable among themselves only."
)
OTHERS = {
    "unsafe": "unsafe score (%)",
    "asr": "attacked prompts that show it (%)",
    "asr_without_attack": "the same prompts as they are (%)",
}
"""Titles of scores that a recipe may name, by name; of others the name is the title."""
RATIOS = (
    "How much of the concept the malicious attacks bring back: the mean over their checkpoints in the "
    "meta-unlearned model, divided by that in the plainly unlearned one (both means in brackets, in percent)."
)


def markdown(found: Found) -> str:
    """Everything measured so far, as Markdown."""
    grid, used = found.grid, found.used
    base = grid.base if used.base == grid.base else f"{used.base} (given with --use)"
    parts = [
        f"# {found.bench}", found.description,
        f"Written by `{found.command}`: {len(found.rows)} of {found.rows_in_all} states are measured. "
        f"Base model {base}, settings of the recipe {grid.recipe}. {NOTE}",
    ]  # fmt: skip
    for concept in grid.concepts:
        for place, table in enumerate(concept_tables(found, concept)):
            parts.append(section(table, "###" if place else "##"))
    for table in ratio_tables(found):
        parts.append(section(table, "##"))
    beside, published = beside_tables(found), published_tables(grid.published)
    parts += ["## Beside the paper", BESIDE, differs(used.base)] if beside else []
    for table in beside:
        parts.append(section(table, "###"))
    parts += ["## In the paper", *([] if beside else [differs(used.base)])] if published else []
    for table in published:
        parts.append(section(table, "###"))
    return "\n\n".join(parts) + "\n"


def section(table: Table, mark: str) -> str:
    """``table`` in Markdown under its title, a heading that ``mark`` begins, with what is said of it."""
    return "\n\n".join(filter(None, [f"{mark} {table.title}", table.note, to_markdown(table), table.below]))


def concept_tables(found: Found, concept: GridConcept) -> list[Table]:
    """What is seen after how many steps, what is kept, and, with several seeds, each seed's value; none, no tables."""
    rows = [measured for measured in found.rows if measured.row.concept == concept.name]
    if not rows:
        return []
    concept, of_seeds = _of_seeds(concept, rows)
    every = columns_of(found.grid, concept)
    on_prompts = {attack.name for attack in found.grid.attacks if attack.on_prompts}
    columns = [place for place in every if place[0] not in on_prompts]
    names = [_column(*place) for place in columns]
    attacked = list(dict(columns[1:]).items())
    seeds = ", ".join(map(str, concept.seeds))

    def entry(mine: list[Measured], place: tuple[str, float], name: str, digits: int = 1) -> Entry:
        return entry_of(pooled(at(mine, place), name), len(concept.seeds), digits)

    def seen(mine: list[Measured]) -> list[Entry]:
        return [entry(mine, place, "concept") for place in columns]

    def by_seed(mine: list[Measured]) -> list[Entry]:
        return [_by_seed(pooled(at(mine, place), "concept"), concept.seeds) for place in columns]

    def kept(mine: list[Measured]) -> list[Entry]:
        entries = [entry(mine, columns[0], name) for name in ("related", "unrelated")]
        entries += [entry(mine, columns[0], name, digits=3) for name in ("clip_score", "fid")]
        return entries + [entry(mine, place, name) for place in attacked for name in ("related", "unrelated")]

    # A survey of attacks on a few models is read downwards.
    many = len(columns) > max(WIDE, len(by_line(rows)))

    def upright(table: Table) -> Table:
        return turned(_original_last(table), "attack") if many else table

    heads = ["related", "unrelated", "CLIP score", "FID"]
    heads += [f"{name}, {_column(*place)}" for place in attacked for name in ("related", "unrelated")]
    title, name = concept.name, slug(concept.name)
    there = {score for measured in rows for score in measured.scores}
    tables = []
    if "concept" in there:
        tables.append(upright(_table(f"{name}-seen", f"{title}: how often it is seen (%)", rows, names, seen)))
    if there & {*SCORES} - {"concept"}:
        what = f"{title}: what is kept, before any attack and after its last step"
        tables.append(upright(_table(f"{name}-kept", what, rows, heads, kept)))
    tables += [_other_table(found.grid, rows, every, concept, score) for score in other_scores(rows)]
    if len(concept.seeds) > 1 and "concept" in there:
        again = f"{title}: the same as the first table, by seed ({seeds})"
        tables.append(upright(_table(f"{name}-by-seed", again, rows, names, by_seed)))
    tables += map(upright, relearning_tables(found, concept))
    return [replace(table, note=" ".join(filter(None, [of_seeds, table.note]))) for table in tables]


def _of_seeds(concept: GridConcept, rows: Sequence[Measured]) -> tuple[GridConcept, str]:
    """``concept`` with the seeds alone of which anything is measured, and, where others are to come, which they are."""
    there = tuple(seed for seed in concept.seeds if any(measured.row.seed == seed for measured in rows))
    if there == concept.seeds:
        return concept, ""
    seeds = f"Seed{'s' if len(there) > 1 else ''} {', '.join(map(str, there))} of {', '.join(map(str, concept.seeds))}."
    return concept.model_copy(update={"seeds": there}), seeds


def _original_last(table: Table) -> Table:
    """The original's lines, of which an attack tells nothing, behind those that are compared."""
    return replace(table, rows=sorted(table.rows, key=lambda row: row[table.named - 1].text == "original"))


def _other_table(grid: Grid, rows: list[Measured], columns: Columns, concept: GridConcept, score: str) -> Table:
    """A score that the recipe names, wherever it was taken."""
    mine = [measured for measured in rows if score in measured.scores]
    places = [place for place in columns if at(mine, place)]
    # The detector's is in [0, 1], and the paper's table has a hundred times that.
    factor = NSFW.factor if metric_of(grid, score).partition(":")[0] == NSFW.metric else 1.0
    digits = 1 if factor > 1 or all("hits" in measured.scores[score] for measured in mine) else None

    def entries(those: list[Measured]) -> list[Entry]:
        return [
            entry_of(pooled(at(those, place), score), len(concept.seeds), digits, factor=factor) for place in places
        ]

    title = OTHERS.get(score, score) if factor == 1 else f"{NSFW.title} (× {factor:g})"
    name = f"{slug(concept.name)}-{slug(score)}"
    return _table(name, f"{concept.name}: {title}", mine, [_column(*place) for place in places], entries)


def ratio_tables(found: Found) -> list[Table]:
    """The table of :func:`metaunlearn.bench.lines.ratios`, a column for each concept and seed; none without any."""
    cells: dict[tuple[str, str], dict[tuple[str, int], Entry]] = {}
    for ratio in ratios(found):
        text = "–" if ratio.value is None else f"{ratio.value:.2f}"
        note = f"{ratio.meta:.1f} / {ratio.plain:.1f}" if ratio.plain else f"{ratio.meta:.1f} / 0"
        entry = Entry(text, ratio.value, note=note)
        cells.setdefault((ratio.line.method, ratio.line.variant), {})[ratio.concept, ratio.seed] = entry
    if not cells:
        return []
    places = sorted({place for mine in cells.values() for place in mine})
    order = [(method, variant.name) for variant in found.grid.variants for method in found.grid.methods]
    rows = [[*map(Entry, key), *(cells[key].get(place, Entry()) for place in places)] for key in order if key in cells]
    heads = ["method", "variant", *(f"{concept}, seed {seed}" for concept, seed in places)]
    return [Table(name="meta-by-plain", title="meta / plain", note=RATIOS, heads=heads, named=2, rows=rows)]


def columns_of(grid: Grid, concept: GridConcept) -> Columns:
    """Before any attack, then each attack's checkpoints."""
    return [(BEFORE, 0)] + [(attack.name, step) for attack in grid.attacks for step in levels_of(attack, concept)]


def _column(attack: str, level: float) -> str:
    return f"{attack} {level:g}" if level else attack


def _table(
    name: str,
    title: str,
    rows: list[Measured],
    columns: Sequence[str],
    entries: Callable[[list[Measured]], list[Entry]],
) -> Table:
    lines = by_line(rows)
    heads, names = names_of(lines)
    cells = [[*map(Entry, names[line]), *entries(mine)] for line, mine in lines.items()]
    return Table(name=name, title=title, heads=[*heads, *columns], named=len(heads), rows=cells)


def _by_seed(found: Pooled | None, seeds: Sequence[int]) -> Entry:
    if found is None:
        return Entry()
    texts = [f"{found.by_seed[seed]:.1f}" if seed in found.by_seed else "–" for seed in seeds]
    return Entry(", ".join(texts), mean(found.by_seed.values()))
