"""The cells of a grid: pieces of work, each named by the hash of everything that its result depends on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from metaunlearn.bench import sources
from metaunlearn.runs import versions

KINDS = ("pictures", "data", "given", "erase", "donor", "attack", "measure", "evaluate", "judge", "adversarial")
"""The model's own pictures; the attacker's real ones, of Canvas or of the call; an erased model; what is trained on the
base model to be brought into some; what an attack leaves; scores of a state: on a task of Canvas, on prompts, of the
pictures that an attack left, or under attacked prompts."""
SCORES = ("measure", "evaluate", "judge", "adversarial")
"""Those of them that a row is."""
NUMERICAL = ("torch", "diffusers", "transformers")
"""Packages whose version is part of every key."""
KEY_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of work. Two cells of one name are the same work, whatever else differs between them."""

    kind: str
    key: str
    """Of :func:`make_cell`."""
    spec: Mapping[str, Any] = field(hash=False)
    """What the key was made from, beside the code."""
    needs: Mapping[str, str] = field(hash=False)
    """By argument, the names of the cells whose folders it reads."""
    call: Mapping[str, Any] = field(hash=False)
    """Further arguments of the function ``make`` of ``bench/kinds/KIND.py``; JSON values."""
    labels: Mapping[str, Any] = field(hash=False)
    """What people call it: of the first row of the grid that wants it."""
    size: float
    """How much work it is, in a unit of its kind: pictures or training steps."""
    missing: tuple[str, ...] = ()
    """What it needs that is not here, each with what to do about it; its key is not the final one then."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.kind}-{self.key}"

    def record(self) -> dict[str, Any]:
        """As ``cell.json`` has it."""
        return {
            "kind": self.kind, "key": self.key, "labels": dict(self.labels), "spec": dict(self.spec),
            "needs": dict(self.needs), "size": self.size,
        }  # fmt: skip


def make_cell(
    kind: str,
    *,
    spec: Mapping[str, Any],
    call: Mapping[str, Any],
    labels: Mapping[str, Any],
    size: float,
    needs: Mapping[str, Cell] | None = None,
    missing: tuple[str, ...] = (),
) -> Cell:
    """The cell of ``kind`` with this ``spec``, whose key also holds the cells it needs, its code and the packages."""
    names = {role: cell.name for role, cell in (needs or {}).items()}
    spec = json.loads(json.dumps(spec))
    content = {
        "kind": kind,
        "spec": spec,
        "needs": names,
        "code": code_of(kind),
        "packages": {name: version for name, version in _versions().items() if name in NUMERICAL},
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
    return Cell(
        kind=kind, key=key, spec=spec, needs=names, call=call, labels=labels, size=size, missing=missing
    )  # fmt: skip


@functools.cache
def code_of(kind: str) -> str:
    """The hash of the code that makes cells of ``kind``."""
    return sources.code_hash(f"metaunlearn.bench.kinds.{kind}")


@functools.cache
def _versions() -> dict[str, str]:
    return versions()
