"""What a bench's recipe says: base model x concept x method x erased how x attack x seed, and how much is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pydantic import Field

from metaunlearn.attacks.registry import KINDS, kind_of, strengths_of
from metaunlearn.bench.attacks import GridAttack, PromptSource, Steps, check_attack
from metaunlearn.bench.published import CAPTIONS
from metaunlearn.bench.scores_asked import check_scores
from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.canvas.datasets import DATASETS
from metaunlearn.canvas.tasks import known
from metaunlearn.config import Counts
from metaunlearn.data.recipes import recipe_named
from metaunlearn.erasure.registry import find
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.recipe import named_in, read_kind, read_recipe
from metaunlearn.settings import Settings, resolve

CANVAS = "canvas"
ModelName = Literal["original", "unlearn", "meta-unlearn"]
Place = Literal["before", "between", "last"]
"""Before any attack, at the checkpoints of an attack but the last, and there."""


class GridPrompts(PromptSource):
    """Prompts of which every state is asked, in place of the counts of ``measure``."""

    name: str
    """The role of their pictures."""
    images: int = Field(default=1, gt=0)
    """Of each prompt."""
    scores: dict[str, str] = Field(default_factory=dict)
    """By the name of the score in the tables, the metric as ``evaluate --metrics`` has it; empty: pictures only."""
    reference: str = ""
    """What ``--use NAME=DIR`` calls the real pictures, for fid and kid."""
    at: tuple[Place, ...] = ("before", "between", "last")
    """In which states they are asked."""
    shown: int = Field(default=4, ge=0)
    """Pictures that are kept to look at."""
    sensitive: bool = False
    """Whether the page shows them blurred until they are asked for."""

    def asks(self, place: Place) -> bool:
        """Whether pictures are drawn for them in a state there."""
        return place in self.at and bool(self.scores or self.shown)


class GridConcept(Settings):
    """One concept: it is erased, attacked and measured once for each seed."""

    name: str
    """An object or a style of Canvas; of another base model, what the tables call it."""
    text: str = ""
    """What is erased, synonyms separated by ``|``; empty: the name."""
    related: tuple[str, ...] = ()
    """What is like the concept and kept, as ``erase --related`` has it; Canvas knows its own."""
    retain: tuple[str, ...] = ()
    """What else is kept, as ``erase --retain`` has it; ``none``: no list of this program's own."""
    alternatives: tuple[str, ...] = ()
    """What a judge may see instead of the concept."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of everything: the model's own pictures, erasing, the attacker's pictures, attacking, measuring."""
    steps: Steps = ()
    """Checkpoints of the attacks that name none themselves."""
    attack: dict[str, Any] = Field(default_factory=dict)
    """Settings of the attacks on this concept, over the recipe's."""
    data: dict[str, str] = Field(default_factory=dict)
    """By data set of an attack, the one that takes its place for this concept."""
    texts: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By name of ``prompts``, this concept's own; then every concept has some."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing this concept, over the grid's."""
    by_method: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Those of single methods, over ``set``, by the method's name in the grid."""

    @property
    def erased(self) -> str:
        """What is erased."""
        return self.text or self.name


class GridVariant(Settings):
    """One way of running the methods, for ablations."""

    name: str
    """As the tables call it; empty for the only one."""
    models: tuple[ModelName, ...] = ()
    """Of the grid's models, those that this variant has; empty: all of them."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing, over the concept's."""


class GridMeasure(Settings):
    """Pictures of a task of Canvas that are generated and judged."""

    before: Counts
    """Before any attack."""
    between: Counts
    """At the checkpoints of an attack but the last."""
    last: Counts
    """At an attack's last checkpoint."""
    shown: int = Field(default=4, ge=0)
    """Pictures of each role that are kept to look at."""


class GridPictures(Settings):
    """Which of the kept pictures the page shows."""

    roles: tuple[str, ...] = ("concept",)
    """``concept``, ``related``, ``unrelated``, or names of ``prompts``."""
    steps: Literal["last", "all"] = "last"
    """Of each attack its last checkpoint, or all of them."""


class Grid(Settings):
    """A bench."""

    base: str = CANVAS
    """The model from which concepts are erased; another of its kind may stand in (``--use base=MODEL``)."""
    recipe: str = "small"
    """Settings of erasing and attacking; those of the file itself, where it has some."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of erasing, over the recipe's."""
    methods: tuple[str, ...] = Field(min_length=1)
    """How concepts are erased."""
    models: tuple[ModelName, ...] = Field(default=("original", "unlearn", "meta-unlearn"), min_length=1)
    """Not erased, erased plainly, erased with the meta objective."""
    by_model: dict[ModelName, dict[str, Any]] = Field(default_factory=dict)
    """Settings of erasing one of ``models`` alone, over all others: a plain one may take as many steps as have as many
    gradients."""
    concepts: tuple[GridConcept, ...] = Field(min_length=1)
    attacks: tuple[GridAttack, ...] = ()
    variants: tuple[GridVariant, ...] = (GridVariant(name=""),)
    measure: GridMeasure | None = None
    """What is measured on Canvas; it or ``prompts``."""
    prompts: tuple[GridPrompts, ...] = ()
    """What is measured on any model."""
    judge: str | None = None
    """Of the scores of ``prompts``; another may stand in (``--use judge=MODEL``). None: on Canvas its own."""
    pictures: GridPictures = GridPictures()
    diagnosed: bool = False
    """Whether what erasing says of itself (``diagnostics_every`` and so on) is part of the result, and on the page."""
    keep_checkpoints: bool = True
    """Whether the models after an attack stay when all their pictures are drawn; these stay where ``prompts`` ask for
    them, while ``measure`` holds none."""
    published: tuple[str, ...] = ()
    """Tables of the paper to set beside, by the names in bench/paper."""


def prompt_sources(grid: Grid) -> list[PromptSource]:
    """All prompts of ``grid``: those that are measured, and those that are attacked."""
    return [*grid.prompts, *(attack.prompts for attack in grid.attacks if attack.prompts is not None)]


def levels_of(attack: GridAttack, concept: GridConcept) -> tuple[float, ...]:
    """Steps of training after which ``attack`` on ``concept`` is looked at, or its strengths; 0 of one on prompts."""
    if attack.on_prompts:
        return (0,)
    return steps_of(attack, concept) if attack.trains else attack.strengths or strengths_of(attack.kind) or ()


def steps_of(attack: GridAttack, concept: GridConcept) -> Steps:
    """The checkpoints of an ``attack`` that trains."""
    return attack.steps or concept.steps


class BenchRecipe(NamedTuple):
    """A recipe of a bench as read."""

    name: str
    description: str
    command: str
    grid: Grid


def read_bench(name: str) -> BenchRecipe:
    """The grid of the recipe ``name`` (shipped, or a path); UserError says what is wrong with it."""
    recipe = read_kind(name, "grid", "for bench to run")
    own = recipe.erase or recipe.methods or recipe.attack or recipe.attacks
    values = {**({"recipe": name} if own else {}), **recipe.grid}
    try:
        grid = resolve(Grid, values)
        grid = grid.model_copy(update={"recipe": named_in(name, grid.recipe)})
        if own and not _same(grid.recipe, name):
            raise UserError(
                f"the file has settings of erasing or attacking ([erase] ...), and recipe = {grid.recipe!r} brings "
                "others in their place: leave out either."
            )
        read_recipe(grid.recipe)
        check_grid(grid)
    except UserError as error:
        raise UserError(f"recipe {name}, [grid]: {error}") from error
    return BenchRecipe(name, recipe.description, recipe.command, grid)


def _same(one: str, other: str) -> bool:
    return one == other or (Path(one).is_file() and Path(other).is_file() and Path(one).samefile(other))


def check_grid(grid: Grid) -> None:
    """UserError when parts of ``grid`` do not go together."""
    if (grid.measure is None) == (not grid.prompts):
        raise UserError("a grid has either [grid.measure], for tasks of Canvas, or [[grid.prompts]]; got both or none.")
    if grid.measure is not None and grid.base != CANVAS:
        raise UserError(f"[grid.measure] is for tasks of Canvas only, and base = {grid.base!r}: use [[grid.prompts]].")
    for concept in grid.concepts:
        if grid.base == CANVAS and not known(concept.name):
            meant = did_you_mean(concept.name, [*NAMES, *STYLES])
            raise UserError(f"Canvas has no concept {concept.name!r}.{meant}")
        for attack in grid.attacks:
            _check_attack(grid, attack, concept)
        _known(concept.by_method, grid.methods, f"{concept.name!r}, by_method: the grid has no method")
        _known(concept.texts, [prompts.name for prompts in grid.prompts], f"{concept.name!r}: no prompts are called")
    of_concepts = {prompts.name for prompts in grid.prompts if all(prompts.name in c.texts for c in grid.concepts)}
    for prompts in prompt_sources(grid):
        theirs = isinstance(prompts, GridPrompts) and prompts.name in of_concepts
        if bool(prompts.texts) + bool(prompts.file) + theirs != 1:
            said = prompts.model_dump(exclude_defaults=True)
            raise UserError(f"prompts have either texts, or a file, or each concept has its own; got {said}.")
    for prompts in grid.prompts:
        if PurePosixPath(prompts.name).name != prompts.name or prompts.name[:1] == "." or "\\" in prompts.name:
            raise UserError(
                f"prompts cannot be called {prompts.name!r}, for files of their pictures are: leave out slashes, and a "
                "dot at the beginning."
            )
    check_scores(grid.prompts)
    roles = [prompts.name for prompts in grid.prompts] or ["concept", "related", "unrelated"]
    if grid.pictures != GridPictures():
        _known(grid.pictures.roles, roles, "[grid.pictures]: no pictures have the role")
    erased = [model for model in grid.models if model != "original"]
    _known(grid.by_model, erased, "[grid.by_model]: the grid has no erased model")
    for what in ("concepts", "attacks", "variants", "prompts"):
        names = [item.name for item in getattr(grid, what)]
        if len({*names}) < len(names):
            raise UserError(f"each of the {what} needs a name of its own; got {names}.")
    _once("methods", [find(method).name for method in grid.methods], "uce is uce-2023")
    _once("models", grid.models)
    for concept in grid.concepts:
        _once(f"{concept.name!r}, seeds", concept.seeds)
        _check_keys(grid, concept)
    _known(grid.published, list(CAPTIONS), "published: the paper has no table")


def _check_attack(grid: Grid, attack: GridAttack, concept: GridConcept) -> None:
    check_attack(attack, pictures_judged=grid.measure is not None)
    if attack.takes_data:
        for data in attack.data_sets:
            data = concept.data.get(data, data)
            if grid.base == CANVAS:
                _known([data], list(DATASETS), f"the attack {attack.name!r}: Canvas has no data set")
            else:
                recipe_named(data)
    steps = steps_of(attack, concept) if attack.trains else attack.steps or (1,)
    if not steps or list(steps) != sorted({*steps}) or steps[0] < 1:
        raise UserError(
            f"the attack {attack.name!r} on {concept.name!r} needs steps, ascending whole numbers from 1 on, "
            f"from itself or from the concept; got {list(steps)}."
        )


def _check_keys(grid: Grid, concept: GridConcept) -> None:
    """What a concept says of all attacks and data sets, each of which takes its part of it."""
    kinds = {*KINDS, *(attack.kind for attack in grid.attacks)}
    settings = sorted({key for kind in kinds for key in kind_of(kind).model_fields})
    _known(concept.attack, settings, f"{concept.name!r}, attack: no attack has the setting")
    attacks = [attack for attack in grid.attacks if attack.takes_data]
    data = dict.fromkeys(name for attack in attacks for name in attack.data_sets)
    _known(concept.data, list(data), f"{concept.name!r}, data: no attack of the grid is given")


def _once(what: str, values: Sequence[object], note: str = "") -> None:
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        more = f" ({note})" if note else ""
        raise UserError(f"{what}: {repeated[0]!r} stands there twice, and would be counted twice{more}; name it once.")


def _known(names: Iterable[str], there: Sequence[str], problem: str) -> None:
    for name in names:
        if name not in there:
            raise UserError(f"{problem} {name!r}.{did_you_mean(name, there)} There are: {', '.join(there)}.")
