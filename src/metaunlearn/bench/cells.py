"""The cells of a grid: pieces of work, each named by the hash of everything that its result depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from metaunlearn.bench import sources
from metaunlearn.errors import UserError
from metaunlearn.runs import package_version

KINDS = (
    "pictures", "data", "given", "erase", "donor", "attack", "drawn", "measure", "evaluate", "judge", "adversarial",
)  # fmt: skip
"""The model's own pictures; the attacker's real ones, of Canvas or of the call; an erased model; what is trained on the
base model to be brought into some; what an attack leaves; what a state draws for prompts; scores of a state: on a task
of Canvas, of what it drew, of the pictures that an attack left, or under attacked prompts."""
SCORES = ("measure", "evaluate", "judge", "adversarial")
"""Those of them that a row is."""
NO_DEVICE = ("data", "given", "judge")
"""Those that are made on the CPU wherever the others are; they hold no model, or a small judge's."""
NUMERICAL = ("torch", "diffusers", "transformers")
"""Packages whose version is part of every key."""
DECODING = ("pillow", "numpy")
"""They draw, decode and resize pictures that no model of ours has just drawn."""
PACKAGES = dict.fromkeys(("data", "donor", "attack", "measure", "evaluate", "judge", "adversarial"), DECODING)
"""By kind, further packages whose version is part of the key. The model's own pictures are kept without loss and at
their size, so that ``pictures`` and ``erase`` come out the same under any."""
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
    device: str = ""
    """The kind of device that it is made on, ``cpu`` or ``cuda``; empty: the CPU, and the key says nothing of it."""
    packages: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The versions that the key holds."""
    code: str = ""
    """The hash in the key of the code that makes it."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.kind}-{self.key}"

    def record(self) -> dict[str, Any]:
        """As ``cell.json`` has it."""
        return {
            "kind": self.kind, "key": self.key, "labels": dict(self.labels), "spec": dict(self.spec),
            "needs": dict(self.needs), "size": self.size, "packages": dict(self.packages),
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
    device: str = "cpu",
    packages: tuple[str, ...] = (),
) -> Cell:
    """The cell of ``kind`` with this ``spec``, whose key also holds the cells it needs, its code, the kind of
    ``device`` that it is made on, and the versions of packages: those of its kind, and ``packages`` of its own."""
    names = {role: cell.name for role, cell in (needs or {}).items()}
    spec = json.loads(json.dumps(spec))
    found = {name: _version(name) for name in (*NUMERICAL, *PACKAGES.get(kind, ()), *packages)}
    where, code = "" if kind in NO_DEVICE else kind_of_device(device), code_of(kind)
    content = {
        "kind": kind, "spec": spec, "needs": names, "code": code, "packages": found, "device": where,
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]
    return Cell(
        kind=kind, key=key, spec=spec, needs=names, call=call, labels=labels, size=size, missing=missing,
        device=where, packages=found, code=code,
    )  # fmt: skip


def kind_of_device(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def check_code(cell: Cell) -> None:
    """UserError where this process, on a worker, say, has other code or packages than ``cell`` was planned with."""
    here = {name: _version(name) for name in cell.packages}
    changes = [f"{name} {here[name]} for {planned}" for name, planned in cell.packages.items() if here[name] != planned]
    if cell.code != code_of(cell.kind):
        changes.append(f"another metaunlearn, in what makes cells of the kind {cell.kind!r}")
    if changes:
        raise UserError(
            f"this grid was planned with other code than {platform.node()} has ({', '.join(changes)}): install the "
            "same everywhere (pip install -c constraints.txt), and start the grid again."
        )


@functools.cache
def code_of(kind: str) -> str:
    """The hash of the code that makes cells of ``kind``. It is all loaded first, so that this process runs that code
    and no other, whatever is edited later."""
    module = f"metaunlearn.bench.kinds.{kind}"
    for name in sources.modules_behind(module):
        import_module(name)
    return sources.code_hash(module)


@functools.cache
def _version(name: str) -> str:
    return package_version(name) or "not installed"
