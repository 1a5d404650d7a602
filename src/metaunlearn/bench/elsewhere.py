"""Methods that other packages bring: their code and their version, as a key has them."""

from __future__ import annotations

import functools
import hashlib
import sys
from importlib.metadata import entry_points
from pathlib import Path

from metaunlearn.bench.sources import PACKAGE
from metaunlearn.erasure.registry import GROUP, Configured
from metaunlearn.files import sha256


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
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = [(path.relative_to(folder), path) for folder in folders for path in folder.rglob("*.py")]
    if not folders and module.__file__ is not None:
        files = [(Path(package), Path(module.__file__))]
    digest = hashlib.sha256()
    for name, path in sorted(files):
        digest.update(f"{name.as_posix()}\n{sha256(path)}\n".encode())
    return digest.hexdigest()
