"""The commands that start no job: ``recipes`` and ``doctor``."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.errors import UserError
from metaunlearn.files import check_new_file

recipes = typer.Typer(help="List, show or copy the shipped settings.", no_args_is_help=True)

RECIPE_KINDS = {
    "settings": "settings of erasing and attacking (--recipe NAME):",
    "story": "stories (metaunlearn demo --recipe NAME):",
    "grid": "grids (metaunlearn bench NAME):",
    "tune": "searches (metaunlearn tune NAME):",
}

RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe.")]


@recipes.command(name="list")
def list_recipes(as_json: o.Json = False) -> None:
    """Names of the shipped recipes and what each is for."""
    with working(as_json=as_json) as console:
        from metaunlearn.recipe import read_recipe, recipe_names

        found = {name: read_recipe(name) for name in recipe_names()}
    width = max(map(len, found), default=0)
    lines = []
    for kind, title in RECIPE_KINDS.items():
        mine = {name: recipe for name, recipe in found.items() if recipe.kind == kind}
        lines += ["", title, *(f"  {name:<{width}}  {recipe.description}" for name, recipe in mine.items())]
    facts = {name: {"kind": r.kind, "description": r.description, "command": r.command} for name, r in found.items()}
    console.result({"recipes": facts}, *lines[1:])


@recipes.command()
def show(name: RecipeName, as_json: o.Json = False) -> None:
    """Print a recipe."""
    with working(as_json=as_json) as console:
        text = _shipped(name)
    console.result({"name": name, "text": text}, text.rstrip())


@recipes.command()
def copy(
    name: RecipeName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to; by default NAME.toml in this folder.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Copy a recipe to a file of your own, for --recipe FILE."""
    with working(as_json=as_json) as console:
        from metaunlearn.files import path_of, write_atomic

        text, target = _shipped(name), path_of(out or f"{name}.toml")
        check_new_file(target)
        write_atomic(target, text)
    console.result({"name": name, "file": str(target)}, f"copied to {target}")


@recipes.command()
def keys(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A method of erasing (by default esd-u-1), or a kind of attack.")
    ] = "esd-u-1",
    as_json: o.Json = False,
) -> None:
    """List what --set can change, with defaults where a recipe says nothing."""
    with working(as_json=as_json) as console:
        from metaunlearn.keys import keys_by_name

        found = keys_by_name(name)
    lines = []
    for title, group in found.items():
        lines += ["", f"{title}:"]
        for key in group:
            lines += [f"  {key.name} = {key.default or '(the recipe says it)'}", *_hanging(key.says)]
    facts = {title: [key._asdict() for key in group] for title, group in found.items()}
    console.result({"name": name, "keys": facts}, *lines[1:])


def _hanging(text: str) -> list[str]:
    width = max(40, shutil.get_terminal_size().columns - 6)
    return [f"      {line}" for line in textwrap.wrap(text, width)]


def _shipped(name: str) -> str:
    from metaunlearn.errors import did_you_mean
    from metaunlearn.recipe import recipe_names, recipe_text

    if name not in recipe_names():
        known = ", ".join(recipe_names())
        raise UserError(f"there is no shipped recipe {name!r}.{did_you_mean(name, recipe_names())} There are: {known}.")
    return recipe_text(name)


def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Also estimate what erasing from this model needs.")
    ] = None,
    method: o.Method = "esd-u-1",
    recipe: o.Recipe = None,
    overrides: o.Overrides = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:
    """What is installed; what a job would need.

    No job is started. Where it takes seconds, the model's own gradients are timed on random latents, with the memory
    they need; else memory and time are a count. What does not fit gets a list of what to switch on.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.doctor import describe, estimate, inspect_machine

        machine = inspect_machine()
        job = None
        if model is not None:
            job = estimate(model, method=method, recipe=recipe, overrides=overrides or (), device=device, measured=True)
    facts = {"machine": machine.to_dict(), "job": None if job is None else job.to_dict()}
    console.result(facts, *describe(machine, job))
