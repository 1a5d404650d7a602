"""Methods that other packages bring: their code and their version, as a key has them."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import entry_points
from pathlib import Path

from metaunlearn.bench.sources import PACKAGE, files_hash
from metaunlearn.erasure.registry import GROUP, Configured


def code_elsewhere(chosen: Configured) -> dict[str, list[str]]:
    """By method, of ``chosen`` and of what erases before it: the hash of the package that brings it, and that package's
    version where it is known; nothing of our own methods."""
    found: dict[str, list[str]] = {}
    for stage in chosen.stages:
        package = type(stage.method).__module__.partition(".")[0]
        if package != PACKAGE:
            givers = [point.dist for point in entry_points(group=GROUP, name=stage.name) if point.dist is not None]
            found[stage.name] = [package_hash(package), *(f"{giver.name} {giver.version}" for giver in givers)]
    return found


@functools.cache  # Like what was imported of it, for the whole process.
def package_hash(package: str) -> str:
    """SHA-256 of every Python file of the top-level ``package``, an imported one; of a module its file."""
    module = sys.modules[package]
    places = sorted(getattr(module, "__path__", None) or [module.__file__ or ""])
    return " ".join(files_hash(Path(place), "*.py") for place in places)
