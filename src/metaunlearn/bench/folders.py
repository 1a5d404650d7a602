"""``OUT/RECIPE``, where a recipe's tables go, is one recipe's: a shipped one's, or that of a file of the same name."""

from __future__ import annotations

import json
from pathlib import Path

from metaunlearn.bench.store import Store
from metaunlearn.errors import UserError
from metaunlearn.recipe import recipe_names
from metaunlearn.runs import RESULTS_FILE


def check_folder(store: Store, recipe: str) -> None:
    """UserError where the folder of ``recipe`` has tables, or a plan, of a shipped recipe and this is a file, or of a
    file and this is a shipped one.

    A file that was edited or moved is the same recipe, and so is any with other ``--set``, ``--use`` or ``--only``.
    """
    folder, plan = store.grid_folder(recipe), store.plan_file(recipe)
    for file in (folder / RESULTS_FILE, plan):
        there = _recipe_in(file)
        if there and _is_shipped(there) != _is_shipped(recipe):
            raise UserError(
                f"{folder} is of {_described(there)}, whose tables and plan {_described(recipe)} would replace: give "
                "the file another name, and its tables go to a folder of that name, or choose another output (out=..., "
                f"--out DIR). Cells are shared whatever a recipe is called. What is there may go: delete {folder} and "
                f"{plan}."
            )


def _is_shipped(recipe: str) -> bool:
    return recipe in recipe_names()


def _described(recipe: str) -> str:
    return f"the shipped recipe {recipe}" if _is_shipped(recipe) else f"the file {recipe}"


def _recipe_in(file: Path) -> str:
    """The name or path that ``file`` says; empty where it says none, as plans of earlier versions."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("bench", ""))
    except (OSError, ValueError, AttributeError):
        return ""
