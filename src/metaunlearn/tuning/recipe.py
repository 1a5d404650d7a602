"""What a search's recipe says: which settings vary, under which attacks they are chosen, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from pydantic import Field, model_validator

from metaunlearn.bench.attacks import GridAttack, Steps
from metaunlearn.config import Counts
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_kind
from metaunlearn.settings import Settings, resolve

METHOD = "method"
"""The key that is no setting but names the method."""


class Vary(Settings):
    """One setting that the search varies: a range or choices."""

    key: str
    """Of ``EraseSettings`` or of the method; or ``method``, whose choices are names of methods."""
    low: int | float | None = None
    """Least value of a range."""
    high: int | float | None = None
    """Greatest value of it."""
    log: bool = False
    """Whether the range is searched on a logarithmic scale."""
    choices: tuple[Any, ...] = ()
    """Instead of a range: the values, as a recipe says them."""
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """By a key that stands before this one: the choices of it under which this one varies and is no default."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError(f"{self.key}: give either low and high, or choices")
        if not self.choices and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError(f"{self.key}: low must be below high, and both given")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError(f"{self.key}: log = true needs a range above 0")
        return self

    @property
    def name(self) -> str:
        """As the study calls it: the key, and where it varies."""
        return self.key + "".join(f" at {key} {'/'.join(map(str, values))}" for key, values in self.when.items())

    def varies(self, said: Mapping[str, Any]) -> bool:
        """Whether it varies beside the values ``said`` of other keys."""
        return all(said.get(key) in values for key, values in self.when.items())


class Weights(Settings):
    """What a loss counts, in points of unrelated concepts; see :func:`metaunlearn.tuning.trial.lost`."""

    unrelated: float = Field(default=1.0, ge=0)
    """A point of unrelated concepts."""
    related: float = Field(default=0.6, ge=0)
    """A point of related concepts."""
    fid: float = Field(default=0.1, ge=0)
    """One percent of the original's FID."""


class TuneMeasure(Settings):
    """Pictures that are generated and judged."""

    before: Counts
    """Before any attack: what was lost is seen here."""
    after: Counts
    """At each of an attack's checkpoints."""


class Tune(Settings):
    """A search."""

    base: str = "canvas"
    """The model from which the concept is erased."""
    recipe: str = "small"
    """Settings of erasing and attacking, where the search is silent: its default."""
    concept: str = "knife"
    """An object or a style of Canvas."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """A trial erases, attacks and measures once for each."""
    method: str = "esd-u-1"
    """How the concept is erased, unless that varies."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing, over the recipe's, for every trial."""
    vary: tuple[Vary, ...] = Field(min_length=1)
    """What is searched, in order."""
    start: tuple[dict[str, Any], ...] = ()
    """Settings to try first, each a table of keys that vary; those it leaves out are drawn."""
    trials: int = Field(default=60, ge=0)
    """How many, beside the plain model and the default."""
    startup: int = Field(default=12, gt=0)
    """Trials, the baselines and ``start`` among them, before the sampler learns from them; what it has to choose
    until then is drawn at random."""
    seed: int = Field(default=0, ge=0)
    """Of the sampler."""
    attack: dict[str, Any] = Field(default_factory=dict)
    """Settings of all attacks, over the recipe's."""
    steps: Steps = ()
    """Checkpoints of the attacks that name none themselves."""
    attacks: tuple[GridAttack, ...] = Field(min_length=1)
    """The selection set: trials are chosen by the worst of these."""
    unseen: tuple[GridAttack, ...] = ()
    """The report set, which the search never sees."""
    report_seeds: tuple[int, ...] = ()
    """Seeds of a report; empty: the search's. Others tell more: the best of many is partly luck."""
    measure: TuneMeasure
    weights: Weights = Weights()
    give_up: float | None = Field(default=None, gt=0)
    """A trial that has lost more than this before any attack is not attacked; None: all are."""


class TuneRecipe(NamedTuple):
    """A recipe of a search as read."""

    name: str
    description: str
    tune: Tune


def read_tune(name: str) -> TuneRecipe:
    """The search of the recipe ``name`` (shipped, or a path); UserError says what is wrong with it."""
    recipe = read_kind(name, "tune", "to search")
    try:
        tune = resolve(Tune, recipe.tune)
        _check(tune)
    except UserError as error:
        raise UserError(f"recipe {name}, [tune]: {error}") from error
    return TuneRecipe(name, recipe.description, tune)


def _check(tune: Tune) -> None:
    for place, vary in enumerate(tune.vary):
        before = {other.key: other for other in tune.vary[:place]}
        for key, values in vary.when.items():
            if key not in before or not set(map(repr, values)) <= set(map(repr, before[key].choices)):
                raise UserError(
                    f"vary {vary.key!r}, when: {key!r} must be a key with choices that stands before it, and "
                    f"{list(values)} some of them."
                )
        for other in (other for other in tune.vary[:place] if other.key == vary.key):
            if not any(
                not set(map(repr, other.when[key])) & set(map(repr, values))
                for key, values in vary.when.items()
                if key in other.when
            ):
                raise UserError(f"{vary.key!r} varies twice; tell the two apart by when = {{ OTHER_KEY = [...] }}.")
    for name in _twice([attack.name for attack in (*tune.attacks, *tune.unseen)]):
        raise UserError(f"each attack of [tune] needs a name of its own; there are two {name!r}.")
    for attack in (*tune.attacks, *tune.unseen):
        if not attack.trains:
            raise UserError(
                f"the attack {attack.name!r} ({attack.kind}) trains no model, and a search needs one that does."
            )
    for attack in tune.attacks:
        if not attack.malicious:
            raise UserError(f"the attack {attack.name!r} is benign; the search minimises what attacks bring back.")
    for count, weight in (("related", tune.weights.related), ("unrelated", tune.weights.unrelated)):
        if weight and not getattr(tune.measure.before, count):
            raise UserError(f"measure.before needs {count} pictures, or weights.{count} = 0.")


def _twice(names: Sequence[str]) -> Iterator[str]:
    yield from (name for place, name in enumerate(names) if name in names[:place])
