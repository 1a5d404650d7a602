"""What other packages bring by entry points: erasing methods, attacks, metrics.

CONTRIBUTING.md has a template of each.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError, first_line
from metaunlearn.files import files_hash
from metaunlearn.settings import Settings


@dataclass(frozen=True)
class Group:
    """A group of entry points: name = what a user calls it, object = its class."""

    name: str
    what: str
    """A word for one of them."""
    option: str
    """Where a user names one."""

    def names(self) -> list[str]:
        """Of all that is installed, sorted, each once."""
        return sorted({point.name for point in self._points()})

    def find(self, name: str, *, ours: bool) -> EntryPoint | None:
        """The entry point called ``name``, None when no package has it; whether it is one of ``ours`` as well.

        UserError when more than one brings it.
        """
        theirs = [point for point in self._points() if point.name == name]
        if len(theirs) + ours > 1:
            givers = [package_of(point) for point in theirs] + (["metaunlearn"] if ours else [])
            raise UserError(
                f"the {self.what} {name!r} ({self.option}) is brought by {' and by '.join(givers)}; "
                f"rename the entry point of the group {self.name} in one of them, or uninstall it."
            )
        return theirs[0] if theirs else None

    def where(self, point: EntryPoint) -> str:
        """``point`` in words, for a message to begin with."""
        return f"the {self.what} {point.name!r} of the package {package_of(point)} ({point.value})"

    def load(self, point: EntryPoint) -> Any:
        """What is behind ``point``; UserError when its module cannot be imported."""
        try:
            return point.load()
        except Exception as error:  # Its module runs here, and may fail in any way.
            raise UserError(
                f"{self.where(point)} cannot be loaded: {type(error).__name__}: {first_line(error)}. Install it again, "
                f"or choose another {self.what} ({self.option})."
            ) from error

    def load_settings(self, point: EntryPoint) -> type[Settings]:
        """The class of settings behind ``point``."""
        kind = self.load(point)
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            raise UserError(f"{self.where(point)} is no subclass of metaunlearn.settings.Settings.")
        return kind

    def code(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Of those ``names`` that other packages bring: the hash of all their Python files, and the package's name and
        version where they are known. What else it has is its version's."""
        wanted = {*names}
        points = [point for point in self._points() if point.name in wanted]
        return {point.name: _code(point, self.load(point)) for point in points}

    def _points(self) -> tuple[EntryPoint, ...]:
        return _points(self.name, tuple((place, _changed(place)) for place in sys.path))


def is_ours(thing: object) -> bool:
    """Whether the class of ``thing`` is of this package, and not of another one."""
    return type(thing).__module__.startswith("metaunlearn.")


def package_of(point: EntryPoint) -> str:
    """Which package brings ``point``, in a word."""
    return point.dist.name if point.dist is not None else point.value


@functools.lru_cache(maxsize=64)
def _points(group: str, places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """All of ``group``. To look takes some 10 ms, and a grid asks for every row; ``places`` say whether anything has
    been installed since."""
    return tuple(entry_points(group=group))


def _changed(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def _code(point: EntryPoint, kind: object) -> list[str]:
    """Of the package that ``point`` names and of the one that ``kind`` is from, which may be another."""
    modules = (point.module, getattr(kind, "__module__", point.module))
    packages = dict.fromkeys(module.partition(".")[0] for module in modules)
    hashes = [package_hash(package) for package in packages if package != "metaunlearn"]
    return [*hashes, *([] if point.dist is None else [f"{point.dist.name} {point.dist.version}"])]


@functools.cache  # Like what was imported of it, for the whole process.
def package_hash(package: str) -> str:
    """SHA-256 of every Python file of the top-level ``package``, an imported one; of a module its file."""
    module = sys.modules[package]
    places = sorted(getattr(module, "__path__", None) or [module.__file__ or ""])
    return " ".join(files_hash(Path(place), "*.py") for place in places)
