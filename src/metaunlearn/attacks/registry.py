"""Attacks by name, built in or of other packages, and their settings from a recipe and ``--set``.

Another package brings an attack by an entry point of the group ``metaunlearn.attacks``; CONTRIBUTING.md has a template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.attacks.add_difference import AddDifference
from metaunlearn.attacks.brought import GROUP, attack_class
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
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.overrides import parse_overrides
from metaunlearn.recipe import RecipeFile
from metaunlearn.settings import Settings, resolve

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
    if name in KINDS:
        return KINDS[name]
    if (point := GROUP.find(name, ours=False)) is not None:
        return attack_class(point)
    kinds = [*KINDS, *GROUP.names()]
    raise UserError(
        f"unknown attack {name!r} (kind=, --kind).{did_you_mean(name, kinds)} Known: {', '.join(kinds)}; where another "
        "package brings it, install that."
    )


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
