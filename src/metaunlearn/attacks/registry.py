"""Attacks by name, built in or of other packages, and their settings from a recipe and ``--set``.

Another package brings an attack by an entry point of the group ``metaunlearn.attacks``; CONTRIBUTING.md has a template.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, get_args

from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.attacks.add_difference import AddDifference
from metaunlearn.attacks.dreambooth import DreamBooth
from metaunlearn.attacks.finetune import Finetune
from metaunlearn.attacks.from_pictures import Img2Img, Inpaint
from metaunlearn.attacks.interface import Input
from metaunlearn.attacks.interpolate import Interpolate
from metaunlearn.attacks.lora import Lora
from metaunlearn.attacks.lora_merge import LoraMerge
from metaunlearn.attacks.quantize import Quantize
from metaunlearn.attacks.textual_inversion import TextualInversion
from metaunlearn.attacks.unlearndiffatk import UnlearnDiffAtk
from metaunlearn.config import AttackSettings
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.overrides import parse_overrides
from metaunlearn.plugins import Group
from metaunlearn.recipe import RecipeFile
from metaunlearn.settings import Settings, resolve

GROUP = Group("metaunlearn.attacks", "attack", "kind=, --kind")
"""Where other packages bring theirs."""

KINDS: dict[str, type[Settings]] = {
    "finetune": Finetune,
    "lora": Lora,
    "dreambooth": DreamBooth,
    "textual-inversion": TextualInversion,
    ON_PROMPTS: UnlearnDiffAtk,
    "interpolate": Interpolate,
    "add-difference": AddDifference,
    "lora-merge": LoraMerge,
    "img2img": Img2Img,
    "inpaint": Inpaint,
    "quantize": Quantize,
}
"""Each built-in kind's class; its fields are its settings."""


def kind_of(name: str) -> type[Settings]:
    """The class of the kind ``name``; UserError when there is no such attack."""
    found = KINDS.get(name) or _brought(name)
    if found is None:
        kinds = [*KINDS, *GROUP.names()]
        raise UserError(
            f"unknown attack {name!r} (kind=, --kind).{did_you_mean(name, kinds)} Known: {', '.join(kinds)}."
        )
    return found


def strengths_of(name: str) -> tuple[float, ...] | None:
    """The strengths of the kind ``name`` unless others are asked for; None when it trains, or is on prompts."""
    return getattr(kind_of(name), "strengths", None)


def leaves_pictures(name: str) -> bool:
    """Whether the kind ``name`` leaves pictures rather than a model."""
    return getattr(kind_of(name), "leaves", "pipeline") == "pictures"


def needs(name: str) -> tuple[Input, ...]:
    """What the kind ``name`` is given beside MODEL."""
    return tuple(getattr(kind_of(name), "needs", () if name == ON_PROMPTS else ("data",)))


def folder_name(name: str, level: float) -> str:
    """Where the kind ``name`` leaves a step or a strength: ``step-000050``, ``strength-0.50``, ``bits-8``."""
    word = getattr(kind_of(name), "level", "step")
    if word == "step":
        return f"step-{int(level):06d}"
    if word == "bits":
        return f"bits-{int(level)}"
    return f"{word}-" + (f"{level:.2f}" if level == round(level, 2) else f"{level:g}")


@dataclass(frozen=True)
class Configured:
    """A kind with its settings."""

    name: str
    kind: Any
    """A :class:`~metaunlearn.attacks.interface.TrainingKind`, an ``EditKind``, or ``UnlearnDiffAtk``."""


def known(name: str) -> None:
    """UserError unless there is an attack ``name``, and only one."""
    GROUP.find(name, ours=name in KINDS)
    kind_of(name)


def configure(name: str, recipe: RecipeFile, overrides: Sequence[str] = ()) -> Configured:
    """The attack ``name`` with the recipe's settings and the ``--set`` ``overrides`` on top.

    What holds: ``--set``, then the recipe's table ``[attacks.NAME]``, then, for finetune, its ``[attack]``, of which
    another package's attack takes what it has, too, then the defaults of the kind.
    """
    known(name)
    for table in recipe.attacks:
        known(table)
    shared = recipe.attack if name == "finetune" else {}
    if name not in KINDS:
        shared = {key: value for key, value in recipe.attack.items() if key in kind_of(name).model_fields}
    values = {**shared, **recipe.attacks.get(name, {})}
    for key in parse_overrides(overrides):
        _belongs(key, name)
    return Configured(name, resolve(kind_of(name), values, overrides))


def refuse_ignored(chosen: Configured, overrides: Sequence[str]) -> None:
    """UserError when the attacker's optimiser leaves what ``overrides`` say without effect."""
    optimizer = getattr(chosen.kind, "optimizer", "adamw")
    if optimizer != "adamw" and "weight_decay" in parse_overrides(overrides):
        raise UserError(
            f"weight_decay (--set weight_decay=...) would be ignored, because the attacker's optimizer is {optimizer}. "
            "Choose adamw (--set optimizer=adamw), or leave weight_decay out."
        )


def _belongs(key: str, name: str) -> None:
    """A key of other kinds only is told from a mistyped one."""
    owners, own = [other for other, kind in KINDS.items() if key in kind.model_fields], kind_of(name).model_fields
    if owners and key not in own:
        raise UserError(
            f"the attack {name!r} has no setting {key!r} (--set {key}=...); {', '.join(owners)} "
            f"{'has' if len(owners) == 1 else 'have'}. Settings of {name!r}: {', '.join(own)}."
        )


@functools.cache  # Like what was imported of it, for the whole process.
def _brought(name: str) -> type[Settings] | None:
    """The class of an attack of another package; None when there is none."""
    point = GROUP.find(name, ours=False)
    return None if point is None else _loaded(point)


def _loaded(point: EntryPoint) -> Any:
    """The class behind an entry point, which must be an attack."""
    kind: Any = GROUP.load_settings(point)
    where = GROUP.where(point)
    ways = [word for word in ("begin", "make") if callable(getattr(kind, word, None))]
    if len(ways) != 1 or not callable(getattr(kind, "check", None)):
        raise UserError(
            f"{where} must have check() and one of begin() (it trains) and make() (it does not); it has "
            f"{' and '.join(ways) or 'neither'}."
        )
    if ways == ["begin"]:
        if not issubclass(kind, AttackSettings):
            raise UserError(f"{where} trains, and is no subclass of metaunlearn.config.AttackSettings.")
        if not hasattr(kind, "copies"):
            raise UserError(
                f"{where} trains, and must have copies: the components beside the denoiser that it changes."
            )
        return kind
    lacking = [name for name in ("needs", "level", "strengths", "leaves", "changed") if not hasattr(kind, name)]
    if lacking:
        raise UserError(f"{where} does not train, and must have {', '.join(lacking)} beside make().")
    if not set(kind.needs) <= set(get_args(Input)) or kind.leaves not in ("pipeline", "pictures"):
        raise UserError(
            f"{where}: needs holds {' or '.join(get_args(Input))}, or nothing, and leaves is pipeline or pictures; "
            f"got {kind.needs!r} and {kind.leaves!r}."
        )
    if not re.fullmatch(r"[a-z]+", kind.level) or not kind.strengths:
        raise UserError(
            f"{where}: level is a word in small letters, for folders' names, and strengths are one number or more; "
            f"got {kind.level!r} and {kind.strengths!r}."
        )
    return kind
