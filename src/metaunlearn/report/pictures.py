"""Grids of pictures: the same prompts and seeds, model by model, before and after attacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaunlearn.report.data import ATTACKS, MODELS, Sample
from metaunlearn.report.images import BUDGET, Picture, inline
from metaunlearn.report.sections import ATTACK_TITLES, ROLE_TITLES
from metaunlearn.report.story import MODEL_TITLES

LONG = 10
"""A wall of more strips than this has them below each other, plain and meta in two halves, else side by side."""
PICTURES_PER_STRIP = 6
"""Pictures of one model in one state: what a phone shows in a row."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture to be shown, before it is read."""

    path: Path
    prompt: str
    seed: int
    sensitive: bool


@dataclass(frozen=True, kw_only=True)
class Series:
    """The pictures to be shown of one model in one state; not empty."""

    model: str
    attack: str
    """``before`` or the attack's name."""
    level: str
    """After so many steps, or at what strength; empty before any attack."""
    words: str
    """The state for a reader who cannot see the pictures."""
    shown: list[Shown]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture in its grid."""

    picture: Picture
    alt: str
    sensitive: bool
    place: int
    """1-based place within its strip; the same prompt and seed have the same place in every strip."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The pictures of one model in one state."""

    model: str
    attack: str
    """``before`` or the attack's name."""
    level: str
    """After so many steps, or at what strength; empty before any attack."""
    first: bool
    """Whether it is the first strip of its model."""
    shots: list[Shot]
    place: int
    """1-based, among all strips."""
    state: int
    """1-based row in a long wall: strips of plain and meta after the same attack share one."""
    half: int
    """0 for the left half of a long wall; 1, for the meta-unlearned model beside the plain one, for the right."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All strips of one title."""

    title: str
    strips: list[Strip]
    captions: list[str]
    left_out: int
    """Prompt-and-seed pairs that are not shown."""

    @property
    def long(self) -> bool:
        """Whether its strips are too many to stand side by side."""
        return len(self.strips) > LONG


def read_pictures(series: Iterable[Series], budget: int = BUDGET) -> dict[Path, Picture]:
    """Every picture of ``series``, each read once; together within ``budget`` bytes."""
    paths = list(dict.fromkeys(shown.path for one in series for shown in one.shown))
    return dict(zip(paths, inline(paths, budget), strict=True))


def arrange(title: str, series: Sequence[Series], pictures: Mapping[Path, Picture], *, total: int = 0) -> Grid:
    """``series`` as a grid; ``total`` is the number of prompt-and-seed pairs that there are, if not all are shown."""
    keys = list(dict.fromkeys((shown.prompt, shown.seed) for one in series for shown in one.shown))
    strips = []
    places = _places(series)
    for index, one in enumerate(series):
        state, half = places[index]
        shots = [
            Shot(
                picture=pictures[shown.path],
                alt=f"{MODEL_TITLES[one.model]} model, {one.words}: “{shown.prompt}”, seed {shown.seed}",
                sensitive=shown.sensitive,
                place=keys.index((shown.prompt, shown.seed)) + 1,
            )
            for shown in one.shown
        ]
        leads = not index or one.model != series[index - 1].model
        strips.append(
            Strip(
                model=one.model, attack=one.attack, level=one.level, first=leads, shots=shots, place=index + 1,
                state=state, half=half,
            )
        )  # fmt: skip
    captions = [f"{prompt}, seed {seed}" for prompt, seed in keys]
    return Grid(title=title, strips=strips, captions=captions, left_out=max(total - len(keys), 0))


def _places(series: Sequence[Series]) -> list[tuple[int, int]]:
    """(row, half) of each strip in a long wall: the original's rows, then one for each state of the others."""
    halves = len({one.model for one in series} - {"original"}) > 1
    keys = [(one.model == "original", one.attack, one.level) for one in series]
    rows = list(dict.fromkeys(keys))
    return [
        (rows.index(key) + 1, int(halves and one.model == "meta-unlearn"))
        for one, key in zip(series, keys, strict=True)
    ]


def grids(samples: Sequence[Sample], folder: Path) -> list[Grid]:
    """The pictures in ``folder`` by role; of each attack only the last state is shown."""
    chosen = {role: [_series(state, folder) for state in _states(samples, role)] for role in ROLE_TITLES}
    pictures = read_pictures(one for series in chosen.values() for one in series)
    return [
        arrange(
            ROLE_TITLES[role],
            series,
            pictures,
            total=len({(sample.prompt, sample.seed) for sample in samples if sample.role == role}),
        )
        for role, series in chosen.items()
        if series
    ]


def _series(samples: list[Sample], folder: Path) -> Series:
    first = samples[0]
    if first.attack == "before":
        words = "before any attack"
    else:
        words = f"after {first.steps} steps of {ATTACK_TITLES.get(first.attack, first.attack).lower()}"
    shown = [
        Shown(path=folder / sample.file, prompt=sample.prompt, seed=sample.seed, sensitive=sample.sensitive)
        for sample in samples
    ]
    return Series(
        model=first.model,
        attack=first.attack,
        level=f"{first.steps} steps" if first.steps else "",
        words=words,
        shown=shown,
    )


def _states(samples: Sequence[Sample], role: str) -> list[list[Sample]]:
    """The samples of ``role`` as strips: model by model, ``before`` first, then the last state of each attack."""
    mine = [sample for sample in samples if sample.role == role]
    keys = list(dict.fromkeys((sample.prompt, sample.seed) for sample in mine))[:PICTURES_PER_STRIP]
    strips = []
    for model in MODELS:
        last: dict[str, int] = {}
        for sample in mine:
            if sample.model == model:
                last[sample.attack] = max(sample.steps, last.get(sample.attack, 0))
        for attack in sorted(last, key=_attack_order):
            strip = {
                (sample.prompt, sample.seed): sample
                for sample in mine
                if (sample.model, sample.attack, sample.steps) == (model, attack, last[attack])
            }
            strips.append([strip[key] for key in keys if key in strip])
    return [strip for strip in strips if strip]


def _attack_order(attack: str) -> tuple[int, str]:
    known = ("before", *ATTACKS)
    return (known.index(attack) if attack in known else len(known), attack)
