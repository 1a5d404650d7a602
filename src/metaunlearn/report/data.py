"""What a report is made from, read and checked: ``summary.json`` and ``samples/samples.json``.

Scores of concepts are percentages in [0, 100]: for the erased concept lower is better, for related and unrelated ones
higher is better. A CLIP score has the scale of its protocol (higher is better); FID is at least 0 (lower is better).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from metaunlearn.errors import UserError
from metaunlearn.files import read_json

SUMMARY_FILE = "summary.json"
SAMPLES_FILE = "samples/samples.json"

ModelName = Literal["original", "unlearn", "meta-unlearn"]
MODELS: tuple[ModelName, ...] = ("original", "unlearn", "meta-unlearn")
AttackName = Literal["malicious", "strong", "benign"]
ATTACKS: tuple[AttackName, ...] = ("malicious", "strong", "benign")


class Score(NamedTuple):
    """A figure and its 95 % interval; ``low`` and ``high`` are None where no interval was measured."""

    value: float
    low: float | None = None
    high: float | None = None


def _as_score(given: Any) -> Any:
    """A bare number or ``[value, low, high]`` as a :class:`Score`; None stays None."""
    if given is None or isinstance(given, Score):
        return given
    parts = list(given) if isinstance(given, list | tuple) else [given]
    numbers = [part for part in parts if isinstance(part, int | float) and not isinstance(part, bool)]
    if len(numbers) != len(parts) or len(parts) not in (1, 3) or not all(math.isfinite(part) for part in numbers):
        raise ValueError(f"expected a finite number or [value, low, high], got {given!r}")
    if len(parts) == 3 and not numbers[1] <= numbers[2]:
        raise ValueError(f"expected low <= high in [value, low, high], got {given!r}")
    return Score(*(float(part) for part in numbers))


def _as_percentage(given: Any) -> Any:
    score = _as_score(given)
    if score is not None and not all(-1e-6 <= part <= 100 + 1e-6 for part in score if part is not None):
        raise ValueError(f"expected percentages in [0, 100], got {given!r}")
    return score


Percentage = Annotated[Score, BeforeValidator(_as_percentage)]
AnyScore = Annotated[Score, BeforeValidator(_as_score)]
Steps = Annotated[int, Field(ge=0)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Scores(_Read):
    """One model in one state: S of the design. Intermediate checkpoints may lack everything but ``concept``."""

    concept: Percentage
    related: Percentage | None = None
    unrelated: Percentage | None = None
    clip_score: AnyScore | None = None
    fid: AnyScore | None = None
    images: dict[str, int] = {}
    """Pictures of each role behind the scores; CLIP score and FID are of the unrelated ones."""

    @model_validator(mode="before")
    @classmethod
    def _with_intervals(cls, given: Any) -> Any:
        """CLIP score and FID are bare numbers in ``summary.json``; newer ones have the ends of the interval beside."""
        if not isinstance(given, Mapping) or not isinstance(given.get("intervals"), Mapping):
            return given
        ends = {name: pair for name, pair in given["intervals"].items() if isinstance(given.get(name), int | float)}
        return {**given, **{name: [given[name], *pair] for name, pair in ends.items()}}

    def pictures(self, metric: str) -> int | None:
        """How many pictures ``metric`` was measured on; None: not said."""
        return self.images.get("unrelated" if metric in ("clip_score", "fid") else metric)


class ModelScores(_Read):
    """One model before any attack, and by finetuning step under each."""

    before: Scores
    malicious: dict[Steps, Scores] = {}
    strong: dict[Steps, Scores] = {}
    benign: dict[Steps, Scores] = {}

    def curve(self, attack: AttackName) -> dict[int, Scores]:
        """Scores by finetuning step in ascending order, step 0 (before the attack) included; empty if never run."""
        checkpoints: dict[int, Scores] = getattr(self, attack)
        return dict(sorted({0: self.before, **checkpoints}.items())) if checkpoints else {}

    def last(self, attack: AttackName) -> int | None:
        """The last finetuning step that was scored under ``attack``."""
        return max(getattr(self, attack), default=None)


class Summary(_Read):
    """``summary.json`` of a run that erased and attacked; the optional parts are shown as they are."""

    concept: str
    seconds: float | None = None
    models: dict[ModelName, ModelScores] = Field(min_length=1)
    related: list[str] = []
    unrelated: list[str] = []
    seed: int | None = None
    protocol: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    commands: list[str] = []


class Sample(_Read):
    """One entry of ``samples.json``."""

    model: ModelName
    state: Annotated[str, Field(pattern=r"^(before|[a-z][a-z-]*-\d+)$")]
    """``before`` or ATTACK-STEPS, e.g. ``malicious-100``."""
    role: Literal["concept", "related", "unrelated"]
    prompt: str
    seed: int
    file: str
    """Relative to the folder of ``samples.json``."""
    sensitive: bool = False
    """Shown blurred until it is asked for."""

    @property
    def attack(self) -> str:
        """The attack's name, or ``before``."""
        return self.state.rpartition("-")[0] or self.state

    @property
    def steps(self) -> int:
        """Finetuning steps taken; 0 before the attack."""
        return 0 if self.state == "before" else int(self.state.rpartition("-")[2])


def parse(kind: Any, value: object, source: str) -> Any:
    """``value`` as ``kind`` (a pydantic type); what does not fit is a UserError that names ``source`` and the place."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(
            f"{source}: {place}: {first['msg'].removeprefix('Value error, ')}{more}. "
            "Expected what metaunlearn itself writes; rewrite it with the command that made the folder."
        ) from None


def as_summary(value: Summary | Mapping[str, Any]) -> Summary:
    """``value`` itself, or the summary that a parsed ``summary.json`` holds."""
    return value if isinstance(value, Summary) else parse(Summary, dict(value), "summary")


def read_summary(folder: Path) -> Summary | None:
    """``folder/summary.json``, or None when there is none."""
    path = folder / SUMMARY_FILE
    return parse(Summary, read_json(path), str(path)) if path.is_file() else None


def read_samples(folder: Path) -> list[Sample]:
    """The entries of ``folder/samples/samples.json`` (none without the file); a path out of the folder is refused."""
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return []
    samples: list[Sample] = parse(list[Sample], read_json(path), str(path))
    for sample in samples:
        picture_in(path.parent, sample.file, str(path))
    return samples


def picture_in(folder: Path, file: str, source: str) -> Path:
    """``folder/file``; a UserError that names ``source`` when that leaves the folder or does not exist."""
    image = folder / file
    if not image.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{source}: the file {file!r} leaves the folder {folder}; name one inside it.")
    if not image.is_file():
        raise UserError(f"{source}: the file {file!r} does not exist; write the samples again.")
    return image
