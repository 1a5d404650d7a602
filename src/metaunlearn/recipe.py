"""Recipes: settings in a TOML file, shipped or the user's."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator

from metaunlearn.config import StorySettings
from metaunlearn.erasure.names import by_one_name
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.files import path_of
from metaunlearn.settings import Settings, explain

if TYPE_CHECKING:
    from metaunlearn.models.interface import TextToImageModel

SMALL_MODEL = 100_000_000
"""Denoisers with fewer parameters than this get the recipe ``small``."""


class RecipeFile(Settings):
    """A shipped or a user's TOML file."""

    description: str = ""
    """One line on what it is for."""
    command: str = ""
    """The command that runs it."""
    extends: str = ""
    """Another recipe whose keys hold where this file has none; a table is taken key by key, a list as a whole."""
    erase: dict[str, Any] = Field(default_factory=dict)
    """Keys of :class:`EraseSettings`."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By method, whatever its spelling: what it wants otherwise than ``erase`` has it, and keys of its own."""
    attack: dict[str, Any] = Field(default_factory=dict)
    """Settings of the attack ``finetune``."""
    attack_steps: tuple[int, ...] = ()
    """Checkpoints of an attack that trains, unless ``--steps`` names others."""
    attacks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By kind of attack: its settings where they differ from its defaults."""
    search: dict[str, Any] = Field(default_factory=dict)
    """The grid of ``attack --search``."""
    story: StorySettings | None = None
    """What the demo measures; only its recipe has it."""
    grid: dict[str, Any] = Field(default_factory=dict)
    """What ``bench`` runs: keys of :class:`~metaunlearn.bench.recipe.Grid`; only its recipes have them."""
    tune: dict[str, Any] = Field(default_factory=dict)
    """What ``tune`` searches: keys of :class:`~metaunlearn.tuning.recipe.Tune`; only its recipes have them."""

    @field_validator("methods", mode="before")
    @classmethod
    def _one_table_a_method(cls, value: Any) -> Any:
        return by_one_name(value) if isinstance(value, dict) else value

    @property
    def kind(self) -> str:
        """``settings`` of erasing and attacking, a ``story`` (``demo``), a ``grid`` (``bench``) or ``tune``."""
        return "tune" if self.tune else "grid" if self.grid else "story" if self.story is not None else "settings"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    folder = resources.files("metaunlearn") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of the shipped recipe ``name``, or of the file at that path."""
    if name in recipe_names():
        return (resources.files("metaunlearn") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    path = path_of(name)
    if not path.is_file():
        raise UserError(
            f"there is no recipe {name!r} and no such file; shipped are: {', '.join(recipe_names())}."
            f"{did_you_mean(name, recipe_names())} (recipe=..., --recipe FILE)"
        )
    try:
        return path.read_text(encoding="utf-8-sig")  # Some editors begin UTF-8 with a mark.
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {name}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None


def read_recipe(name: Path | str) -> RecipeFile:
    """The recipe ``name`` (shipped, or a path), checked for unknown sections."""
    try:
        return RecipeFile.model_validate(_values(str(name), ()))
    except ValidationError as error:
        raise UserError(f"recipe {name}: {explain(error, RecipeFile)}") from error


def _values(name: str, below: tuple[str, ...]) -> dict[str, Any]:
    """What stands in the recipe ``name``, over what it extends; ``below`` are those that extend it."""
    if name in below:
        raise UserError(f"recipe {below[0]} extends itself: {' extends '.join((*below, name))}.")
    try:
        own = tomllib.loads(recipe_text(name))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name} is not valid TOML: {error}") from error
    if isinstance(own.get("methods"), dict):
        try:  # Before it goes over its base's, which may spell a method otherwise.
            own["methods"] = by_one_name(own["methods"])
        except ValueError as error:
            raise UserError(f"recipe {name}: {error}.") from error
    base = own.get("extends")
    if not base or not isinstance(base, str):
        return own
    try:
        return _over(own, _values(named_in(name, base), (*below, name)))
    except UserError as error:
        raise UserError(f"recipe {name}, extends: {error}") from error


def named_in(file: str, other: str) -> str:
    """The recipe that the recipe ``file`` calls ``other``: a shipped one, a path from ``file`` on, or one from here."""
    beside = path_of(file).parent / other
    return str(beside) if file not in recipe_names() and other not in recipe_names() and beside.is_file() else other


def _over(own: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """``own`` and, where it has no such key, ``base``; tables that both have, key by key."""
    both = {
        key: _over(part, base[key])
        for key, part in own.items()
        if isinstance(part, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **own, **both}


def read_kind(name: str, kind: str, purpose: str) -> RecipeFile:
    """The recipe ``name``, which must have the section ``kind``, grid or tune; UserError names those that do."""
    recipe = read_recipe(name)
    if not getattr(recipe, kind):
        those = ", ".join(other for other in recipe_names() if read_recipe(other).kind == kind)
        raise UserError(f"recipe {name} has no [{kind}] {purpose} (recipe=, RECIPE); those that do: {those}.")
    return recipe


def no_settings(recipe: RecipeFile) -> str:
    """What to say of a ``recipe`` without [erase] where it is to say how to erase."""
    those = ", ".join(name for name in recipe_names() if read_recipe(name).erase)
    command = {"tune": "tune", "grid": "bench", "story": "demo"}.get(recipe.kind)
    return (
        "the recipe has no settings of erasing ([erase])"
        f"{f': it is one for {command}' if command else ''}. Give one that has (recipe=..., --recipe FILE), such as "
        f"{those}, or let yours extend one (extends = 'small')."
    )


def default_recipe(parameters: int, cross_attention_dim: int, family: str = "sd") -> str:
    """The recipe for a denoiser of this size and class: ``small``, else ``sdxl``, else by the text width.

    768 is Stable Diffusion 1.x, 1024 2.x.
    """
    if parameters < SMALL_MODEL:
        return "small"
    if family == "sdxl":
        return "sdxl"
    return "sd21" if cross_attention_dim == 1024 else "sd14"


def recipe_for(model: TextToImageModel) -> str:
    """The :func:`default_recipe` for ``model``."""
    return default_recipe(model.parameter_count, model.text_width, model.family)
