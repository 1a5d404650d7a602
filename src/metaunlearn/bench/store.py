"""Where cells lie: ``OUT/cells/KIND-KEY``, whole or absent; what is being made has another name until it is whole.

Of a cell that was dropped its ``cell.json`` stays, as ``OUT/records/KIND-KEY.json``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaunlearn.bench.cells import Cell
from metaunlearn.errors import UserError
from metaunlearn.files import write_atomic, write_json
from metaunlearn.locks import Locks
from metaunlearn.runs import versions

CELL_FILE = "cell.json"
RESERVED = ("cells", "errors", "locks", "plans", "records", "shared")
"""Folders of the output that are no recipe's."""


class Store:
    """The cells of one output folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cells = out / "cells"
        self.dropped = out / "records"
        self.locks = Locks(out / "locks")

    @classmethod
    def claim(cls, out: Path) -> Store:
        """The store in ``out``: a new or empty folder, or one that a bench has written to."""
        if out.exists() and not out.is_dir():
            raise UserError(f"the output {out} is a file; give a folder (out=..., --out DIR).")
        if out.is_dir() and any(out.iterdir()) and not (out / "cells").is_dir():
            raise UserError(
                f"the output folder {out} is not empty and holds no bench; choose another (out=..., --out DIR)."
            )
        return cls(out)

    def grid_folder(self, recipe: str) -> Path:
        """Where the tables and the page of a ``recipe`` (a shipped name, or a path) go: several may share the cells.

        UserError when its name is that of another folder here.
        """
        name = Path(recipe).name.removesuffix(".toml")
        if name.lower() in RESERVED or name[:1] in ("", "."):
            raise UserError(
                f"a recipe of a grid cannot be called {Path(recipe).name!r} (recipe=..., RECIPE): its tables go to a "
                f"folder of the output with its name, and {', '.join(RESERVED)}, and names that begin with a dot, are "
                "taken. Give the file another name."
            )
        return self.out / name

    def plan_file(self, recipe: str) -> Path:
        """Where a ``recipe`` says which cells it has."""
        return self.out / "plans" / f"{self.grid_folder(recipe).name}.json"

    def folder(self, name: str) -> Path:
        """Where the whole cell ``name`` lies."""
        return self.cells / name

    def partial(self, name: str) -> Path:
        """Where it lies while it is made."""
        return self.cells / f".{name}.partial"

    def complete(self, name: str) -> bool:
        """Whether the cell is there. Its folder got its name when everything was in it."""
        return self.folder(name).is_dir()

    def finish(self, cell: Cell, *, seconds: float, device: str) -> bool:
        """Make the partial cell a whole one; False, and nothing is done, when its lock is another's by now."""
        partial = self.partial(cell.name)
        more = {"seconds": round(seconds, 3), "device": device, "versions": versions()}
        with self.locks.guard():
            if not self.locks.owned(cell.name):
                return False
            write_json(partial / CELL_FILE, {**cell.record(), **more})
            partial.rename(self.folder(cell.name))
            return True

    def remove(self, name: str) -> None:
        """Drop a cell and keep its record, unless another process has dropped it, or is at work with it; under another
        name first, so that no half of it is taken for the whole."""
        waste = self.cells / f".{name}.removed"
        with self.locks.guard():
            if not self.complete(name) or name in self.locks.needed():
                return
            shutil.rmtree(waste, ignore_errors=True)  # Of a process that was killed here.
            if (self.folder(name) / CELL_FILE).exists():
                write_atomic(self.dropped / f"{name}.json", (self.folder(name) / CELL_FILE).read_text(encoding="utf-8"))
            self.folder(name).rename(waste)
        shutil.rmtree(waste, ignore_errors=True)  # Another process may be at it, too.

    def complain(self, name: str, traceback: str) -> Path:
        """Keep where the making of the cell ``name`` broke; the file that says it."""
        file = self.out / "errors" / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, traceback)
        return file

    def record(self, name: str) -> dict[str, Any]:
        """``cell.json`` of a cell that is whole, or was until it was dropped; empty when there was none."""
        for file in (self.folder(name) / CELL_FILE, self.dropped / f"{name}.json"):
            with contextlib.suppress(FileNotFoundError):  # It may be dropped right now.
                return _read(file)
        return {}

    def behind(self, name: str) -> dict[str, str]:
        """By role, the cells with the state that the cell ``name`` measures, itself or in pictures that it drew."""
        needs: dict[str, str] = self.record(name).get("needs", {})
        drawn = next((need for need in needs.values() if need.startswith("drawn-")), None)
        return needs if drawn is None else self.behind(drawn)

    def records(self) -> list[dict[str, Any]]:
        """:meth:`record` of every cell that there is or was."""
        names = {file.parent.name for file in self.cells.glob(f"*/{CELL_FILE}") if file.parent.name[0] != "."}
        names |= {file.stem for file in self.dropped.glob("*.json") if file.name[0] != "."}
        return [found for name in sorted(names) if (found := self.record(name))]

    def write(self, files: Mapping[str, str], folder: Path | None = None) -> None:
        """Write files of ``folder``, else of ``out``, by name; each whole, and not while another process does."""
        folder = folder or self.out
        folder.mkdir(parents=True, exist_ok=True)
        with self.locks.guard():
            for name, text in files.items():
                write_atomic(folder / name, text)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is no JSON: {error}. Remove the cell, and it is made again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} is no record of a cell: expected a table. Remove the cell, and it is made again.")
    return found
