"""Pictures of a grid: for each concept and method the same seeds, model by model, from what ``measure`` cells keep."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from metaunlearn.bench.kinds.measure import SCORES_FILE
from metaunlearn.bench.lines import by_line, pairs_of
from metaunlearn.bench.plan import BEFORE
from metaunlearn.bench.recipe import GridConcept
from metaunlearn.bench.results import Found, Measured
from metaunlearn.bench.tables import at
from metaunlearn.report.data import parse, picture_in, read_json
from metaunlearn.report.pictures import PICTURES_PER_STRIP, Grid, Series, Shown, arrange, read_pictures


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
    """Concept and its grids, one for each method; cells that do not lie in ``folder`` are left out."""
    planned = [one for concept in found.grid.concepts for one in _planned(found, concept, folder)]
    pictures = read_pictures(series for one in planned for series in one.series)
    by_concept: dict[str, list[Grid]] = {}
    for one in planned:
        by_concept.setdefault(one.concept, []).append(arrange(one.title, one.series, pictures))
    return list(by_concept.items())


def _planned(found: Found, concept: GridConcept, folder: Path) -> list[_Planned]:
    rows = [measured for measured in found.rows if measured.row.concept == concept.name]
    seed = min((measured.row.seed for measured in rows), default=0)
    lines = by_line(measured for measured in rows if measured.row.seed == seed)
    original = [line for line in lines if line.model == "original"]
    last = {attack.name: (attack.steps or concept.steps)[-1] for attack in found.grid.attacks}
    places = [(BEFORE, 0), *last.items()]
    planned = []
    for pair in pairs_of(list(lines)) or [[]]:
        series = [
            series
            for line in [*original, *pair]
            for place in places
            if (series := _series(at(lines[line], place), folder)) is not None
        ]
        if series:
            title = (pair or original)[-1].title
            planned.append(_Planned(concept.name, f"{title}, seed {seed}", series))
    return planned


def _series(rows: list[Measured], folder: Path) -> Series | None:
    """The pictures of the erased concept that the cell of a state keeps; ``rows`` is that state, or nothing."""
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
        if sample.role == "concept"
    ][:PICTURES_PER_STRIP]
    words = "before any attack" if row.attack == BEFORE else f"after {row.step} steps of {row.attack}"
    if not shown:
        return None
    return Series(model=row.model, attack=row.attack, steps=row.step, words=words, shown=shown)
