"""What a bench's recipe says: base model x concept x method x erased how x attack x seed, and how much is measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.canvas.tasks import known
from metaunlearn.config import Counts
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.recipe import read_recipe, recipe_names
from metaunlearn.settings import Settings, resolve

ModelName = Literal["original", "unlearn", "meta-unlearn"]
Steps = tuple[int, ...]


class GridConcept(Settings):
    """One concept: it is erased, attacked and measured once for each seed."""

    name: str
    """An object or a style of Canvas."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of everything: the model's own pictures, erasing, the attacker's pictures, attacking, measuring."""
    steps: Steps = ()
    """Checkpoints of the attacks that name none themselves."""
    attack: dict[str, Any] = Field(default_factory=dict)
    """Settings of the attacks on this concept, over the recipe's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing this concept, over the grid's."""


DataSet = Literal["hrm-m", "hrm-s", "clean"]


class WarmUp(Settings):
    """Finetuning that goes before an attack."""

    data: DataSet = "clean"
    """The data set of real pictures."""
    pictures: int = Field(default=40, gt=0)
    """How many there are."""
    steps: int = Field(gt=0)
    """How long."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings, over the concept's settings of attacks."""


class GridAttack(Settings):
    """One attack on every erased model."""

    name: str
    """As the tables call it."""
    data: DataSet
    """The attacker's data set of real pictures; see canvas/datasets.py."""
    pictures: int = Field(default=40, gt=0)
    """How many it has."""
    kind: Literal["finetune", "lora", "dreambooth"] = "finetune"
    """What is trained on them: attacks that leave a denoiser after each step."""
    steps: Steps = ()
    """Checkpoints; empty: the concept's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of this attack, over the concept's."""
    warm_up: WarmUp | None = None
    """Finetuning on other pictures first, from which this attack goes on; None: it starts at the erased model."""

    @property
    def malicious(self) -> bool:
        """Whether it wants the concept back."""
        return self.data != "clean"


class GridVariant(Settings):
    """One way of running the methods, for ablations."""

    name: str
    """As the tables call it; empty for the only one."""
    models: tuple[ModelName, ...] = ()
    """Of the grid's models, those that this variant has; empty: all of them."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing, over the concept's."""


class GridMeasure(Settings):
    """Pictures that are generated and judged."""

    before: Counts
    """Before any attack."""
    between: Counts
    """At the checkpoints of an attack but the last."""
    last: Counts
    """At an attack's last checkpoint."""
    shown: int = Field(default=4, ge=0)
    """Pictures of each role that are kept to look at."""


class Grid(Settings):
    """A bench."""

    base: str = "canvas"
    """The model from which concepts are erased."""
    recipe: str = "small"
    """Settings of erasing and attacking."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing, over the recipe's."""
    methods: tuple[str, ...] = Field(min_length=1)
    """How concepts are erased."""
    models: tuple[ModelName, ...] = Field(default=("original", "unlearn", "meta-unlearn"), min_length=1)
    """Not erased, erased plainly, erased with the meta objective."""
    concepts: tuple[GridConcept, ...] = Field(min_length=1)
    attacks: tuple[GridAttack, ...] = ()
    variants: tuple[GridVariant, ...] = (GridVariant(name=""),)
    measure: GridMeasure
    keep_checkpoints: bool = True
    """Whether the models after an attack stay when everything that is measured of them is measured."""
    published: tuple[str, ...] = ()
    """Tables of the paper to set beside, by the names in bench/published."""


class BenchRecipe(NamedTuple):
    """A recipe of a bench as read."""

    name: str
    description: str
    command: str
    grid: Grid


def read_bench(name: str) -> BenchRecipe:
    """The grid of the recipe ``name`` (shipped, or a path); UserError says what is wrong with it."""
    recipe = read_recipe(name)
    if not recipe.grid:
        grids = [other for other in recipe_names() if read_recipe(other).kind == "grid"]
        raise UserError(f"recipe {name} has no [grid] for bench to run (recipe=, RECIPE); those that do: {grids}.")
    try:
        grid = resolve(Grid, recipe.grid)
    except UserError as error:
        raise UserError(f"recipe {name}, [grid]: {error}") from error
    try:
        check_grid(grid)
    except UserError as error:
        raise UserError(f"recipe {name}, [grid]: {error}") from error
    return BenchRecipe(name, recipe.description, recipe.command, grid)


def check_grid(grid: Grid) -> None:
    """UserError when parts of ``grid`` do not go together."""
    if grid.base != "canvas":
        raise UserError(f"base = {grid.base!r}: bench knows how to measure tasks of 'canvas' only in this release.")
    for concept in grid.concepts:
        if not known(concept.name):
            meant = did_you_mean(concept.name, [*NAMES, *STYLES])
            raise UserError(f"Canvas has no concept {concept.name!r}.{meant}")
        for attack in grid.attacks:
            steps = attack.steps or concept.steps
            if not steps or list(steps) != sorted({*steps}) or steps[0] < 1:
                raise UserError(
                    f"the attack {attack.name!r} on {concept.name!r} needs steps, ascending whole numbers from 1 on, "
                    f"from itself or from the concept; got {list(steps)}."
                )
    for what in ("concepts", "attacks", "variants"):
        names = [item.name for item in getattr(grid, what)]
        if len({*names}) < len(names):
            raise UserError(f"each of the {what} needs a name of its own; got {names}.")


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """``{"steps": 5}`` as ``--set`` would say it, ``["steps=5"]``."""
    return [f"{key}={value if isinstance(value, str) else as_toml(value)}" for key, value in settings.items()]


def as_toml(value: Any) -> str:
    """A value of a recipe as TOML says it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {as_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)
