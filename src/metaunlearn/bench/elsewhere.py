"""What other packages bring to a cell, methods, attacks and metrics: code and version, as a key has them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from pathlib import Path

from metaunlearn.attacks import registry as attacks
from metaunlearn.bench.sources import PACKAGE, files_hash
from metaunlearn.erasure import registry as methods
from metaunlearn.metrics.brought import GROUP
from metaunlearn.metrics.registry import brought_class
from metaunlearn.plugins import Group
from metaunlearn.runs import package_version


def code_of_methods(chosen: methods.Configured) -> dict[str, list[str]]:
    """By method, of ``chosen`` and of what erases before it; nothing of our own."""
    found = {stage.name: _code(methods.GROUP, stage.name, type(stage.method)) for stage in chosen.stages}
    return {name: code for name, code in found.items() if code}


def code_of_attack(kind: str) -> list[str]:
    """Of the attack ``kind``; nothing of our own."""
    return _code(attacks.GROUP, kind, attacks.kind_of(kind))


def code_of_metrics(asked: Iterable[str]) -> dict[str, list[str]]:
    """By metric, of those ``asked``, written as ``evaluate --metrics`` has them; nothing of our own."""
    found: dict[str, list[str]] = {}
    for metric in asked:
        name = metric.partition(":")[0]
        if (kind := brought_class(name)) is not None:
            found[name] = _code(GROUP, name, kind)
    return found


def _code(group: Group, name: str, kind: type) -> list[str]:
    """The hash of the package that brings ``kind``, called ``name``, and that package's version where it is known."""
    package = kind.__module__.partition(".")[0]
    if package == PACKAGE:
        return []
    return [package_hash(package), *(f"{giver} {package_version(giver)}" for giver in group.givers(name))]


@functools.cache  # Like what was imported of it, for the whole process.
def package_hash(package: str) -> str:
    """SHA-256 of every Python file of the top-level ``package``, an imported one; of a module its file."""
    module = sys.modules[package]
    places = sorted(getattr(module, "__path__", None) or [module.__file__ or ""])
    return " ".join(files_hash(Path(place), "*.py") for place in places)
