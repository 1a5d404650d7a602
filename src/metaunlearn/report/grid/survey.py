"""All attacks of a grid side by side: how much of a concept each brings out, at the step or strength that does most."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from metaunlearn.bench.entries import at
from metaunlearn.bench.lines import Line, by_line, pairs_of
from metaunlearn.bench.recipe import GridConcept, levels_of
from metaunlearn.bench.results import Found, Measured, pooled
from metaunlearn.bench.state import BEFORE
from metaunlearn.report.charts import intervals_chart
from metaunlearn.report.data import ModelName, Score
from metaunlearn.report.story import MODEL_TITLES

SCORES = ("concept", "asr")
"""What an attack is judged by: pictures that show the concept, or prompts that are made to."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The chart of one method, plain and meta together."""

    title: str
    svg: Markup
    description: str
    """What a reader who cannot see it is told."""


def surveys(found: Found, concept: GridConcept) -> list[Survey]:
    """One for each method, if the grid has attacks that make no curve; percentages pooled over the seeds."""
    if all(attack.trains for attack in found.grid.attacks):
        return []
    lines = by_line(measured for measured in found.rows if measured.row.concept == concept.name)
    return [survey for pair in pairs_of(list(lines)) if (survey := _survey(found, concept, pair, lines)) is not None]


def _survey(found: Found, concept: GridConcept, pair: list[Line], lines: dict[Line, list[Measured]]) -> Survey | None:
    places = [("before any attack", (BEFORE, 0.0))]
    for attack in found.grid.attacks:
        level = max(reversed(levels_of(attack, concept)), key=lambda level: _most(pair, lines, (attack.name, level)))
        name = ", ".join(filter(None, (attack.name, attack.words(level))))
        places.append((name, (attack.name, level)))
    scores: list[tuple[str, ModelName, Score]] = []
    for name, place in places:
        for line in pair:
            score = _score(at(lines[line], place))
            if score is not None:
                scores.append((name, line.model, score))
    if not scores:
        return None
    title = f"{concept.name}: {pair[-1].title}"
    said = [f"{name}, {MODEL_TITLES[model].lower()}: {score.value:.0f} %" for name, model, score in scores]
    return Survey(title=title, svg=intervals_chart(scores), description=f"{title}. {'; '.join(said)}.")


def _most(pair: list[Line], lines: dict[Line, list[Measured]], place: tuple[str, float]) -> float:
    """The highest of the models' percentages at ``place``; below all of them where nothing is measured."""
    return max((score.value for line in pair if (score := _score(at(lines[line], place))) is not None), default=-1.0)


def _score(rows: list[Measured]) -> Score | None:
    for name in SCORES:
        score = pooled(rows, name)
        if score is not None:
            return Score(score.value, score.low, score.high)
    return None
