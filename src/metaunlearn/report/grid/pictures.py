"""Pictures of a grid: for each concept and method the same seeds, model by model, from what ``measure`` cells keep."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from metaunlearn.bench.entries import at
from metaunlearn.bench.lines import by_line, pairs_of
from metaunlearn.bench.recipe import GridConcept, levels_of
from metaunlearn.bench.results import Found, Measured
from metaunlearn.bench.state import BEFORE
from metaunlearn.files import read_json
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.report.data import parse, picture_in
from metaunlearn.report.images import GRID_BUDGET
from metaunlearn.report.pictures import PICTURES_PER_STRIP, Grid, Series, Shown, arrange, read_pictures

DEFAULT_ROLE = "concept"
"""The role that a title need not name."""


class _Sample(BaseModel):
    """One entry of the list ``samples`` in ``scores.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: str
    prompt: str
    seed: int
    file: str
    sensitive: bool = False
    """Shown blurred until it is asked for."""


class _Kept(BaseModel):
    samples: list[_Sample] = []


class _Planned(NamedTuple):
    concept: str
    title: str
    series: list[Series]


def concept_pictures(found: Found, folder: Path) -> list[tuple[str, list[Grid]]]:
    """Concept and its grids, one for each method and role; cells that do not lie in ``folder`` are left out."""
    roles = found.grid.pictures.roles
    planned = [one for concept in found.grid.concepts for r in roles for one in _planned(found, concept, folder, r)]
    pictures = read_pictures((series for one in planned for series in one.series), GRID_BUDGET)
    by_concept: dict[str, list[Grid]] = {}
    for one in planned:
        by_concept.setdefault(one.concept, []).append(arrange(one.title, one.series, pictures))
    return list(by_concept.items())


def _planned(found: Found, concept: GridConcept, folder: Path, role: str) -> list[_Planned]:
    rows = [measured for measured in found.rows if measured.row.concept == concept.name]
    seed = min((measured.row.seed for measured in rows), default=0)
    lines = by_line(measured for measured in rows if measured.row.seed == seed)
    original = [line for line in lines if line.model == "original"]
    every = found.grid.pictures.steps == "all"
    places: list[tuple[str, float, str]] = [(BEFORE, 0, "")]
    for attack in found.grid.attacks:
        steps = levels_of(attack, concept)
        places += [(attack.name, step, attack.words(step)) for step in (steps if every else steps[-1:])]
    named = "" if role == DEFAULT_ROLE else f", {role}"
    planned = []
    for pair in pairs_of(list(lines)) or [[]]:
        series = [
            series
            for line in [*original, *pair]
            for attacked_by, step, level in places
            if (series := _series(at(lines[line], (attacked_by, step)), folder, role, level)) is not None
        ]
        if series:
            title = (pair or original)[-1].title
            planned.append(_Planned(concept.name, f"{title}, seed {seed}{named}", series))
    return planned


def _series(rows: list[Measured], folder: Path, role: str, level: str) -> Series | None:
    """The pictures of ``role`` that the cell of a state keeps; ``rows`` is that state, or nothing."""
    if not rows:
        return None
    row, cell = rows[0].row, folder / "cells" / rows[0].cell
    source = cell / SCORES_FILE
    if not source.is_file():
        return None
    kept: _Kept = parse(_Kept, read_json(source), str(source))
    shown = [
        Shown(
            path=picture_in(cell / "samples", sample.file, str(source)),
            prompt=sample.prompt,
            seed=sample.seed,
            sensitive=sample.sensitive,
        )
        for sample in kept.samples
        if sample.role == role
    ][:PICTURES_PER_STRIP]
    if not shown:
        return None
    words = "before any attack" if row.attack == BEFORE else f"after {row.attack}, {level}".removesuffix(", ")
    return Series(model=row.model, attack=row.attack, level=level, words=words, shown=shown)
