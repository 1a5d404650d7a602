"""Refuse settings given with ``--set`` that would have no effect, because of another setting or of the kind of call.

Only what is said in the call itself. A recipe may have both: its own one attacker gives way to a mixture that ``--set``
brings, and what it says of a term goes with the term that ``--set`` takes away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metaunlearn.config import EraseSettings, Of, settings_of
from metaunlearn.errors import UserError
from metaunlearn.overrides import parse_overrides

REPLACED_BY_ATTACKERS = ("inner_optimizer", "inner_learning_rate", "inner_steps")

FLATNESS = settings_of(Of.FLATNESS)
"""Penalties of ``meta/flatness.py``."""

NEEDS: dict[str, tuple[str, ...]] = {
    "meta_loss": ("gamma2",),
    "post_attack_loss": ("gamma2",),
    "zeta_margin": ("zeta", "gamma2"),
    "zeta_related": ("zeta", "gamma2"),
    "zeta_unrelated": ("zeta", "gamma2"),
    "meta_retain": ("zeta", "gamma2"),
    "direct_term": ("zeta", "gamma2"),
    "common_noise": ("zeta", "gamma2", "direct_term"),
    "retain_loss": ("retain_weight",),
    "retain_weighting": ("retain_weight",),
    "retain_related": ("retain_weight",),
    "retain_unrelated": ("retain_weight",),
    "heal_steps": ("retain_weight",),
    "heal_learning_rate": ("heal_steps",),
    "lipschitz_weight": ("gamma1",),
    "sharpness_radius": ("gamma1",),
}
"""Keys that say something of a term, and the weights without which the term is not there."""

OF_PATHS = ("bank_trajectories", "bank_steps", "bank_guidance")
"""Keys of the frozen teacher's sampling paths, which nothing reads that learns from pictures alone."""

OF_TEACHER = (*OF_PATHS, "teacher_precision")
"""Keys of the frozen teacher, whose paths optimised methods alone sample."""

ASKS_NOTHING: dict[str, Any] = {
    "meta_loss": "end",
    "post_attack_loss": "denoising",
    "zeta_margin": None,
    "zeta_related": None,
    "zeta_unrelated": None,
    "meta_retain": "both",
    "direct_term": True,
    "common_noise": True,
    "inner_horizon": None,
    "retain_loss": "denoising",
    "retain_weighting": "none",
    "retain_related": None,
    "retain_unrelated": None,
    "heal_steps": 0,
    "heal_learning_rate": None,
    "lipschitz_weight": 0.0,
    "sharpness_radius": 0.0,
    "diagnostics_exact": "none",
    "diagnostics_subset": "f",
    "teacher_precision": "float32",
}
"""Keys that change an objective or how it is computed, and the value of each that changes nothing."""

OF_OPTIMIZER = {
    "inner_momentum": ("momentum",),
    "inner_weight_decay": ("adamw",),
    "inner_eps_root": ("adam", "adamw"),
}
"""Numbers of the simulated attackers' optimisers, and which of these have them."""

_OF_ONE_ATTACKER = (*REPLACED_BY_ATTACKERS, *OF_OPTIMIZER, "inner_max_gradient_norm", "inner_subset", "inner_horizon")

NEEDS_IN_ONE_RUN: dict[str, tuple[str, ...]] = {
    "zeta": ("gamma2",),
    **dict.fromkeys(_OF_ONE_ATTACKER, ("gamma2",)),
    "diagnostics_subset": ("diagnostics_every",),
    "diagnostics_exact": ("diagnostics_every",),
}
"""As ``NEEDS``, of what a grid may say to all of its runs, some of which have a gamma2 of 0, say."""

OF_DATA = settings_of(Of.PICTURES, Of.DATA)
"""Keys of the pictures that MODEL makes for a run, which are the same for all of its stages."""

OF_TRAINING = (*settings_of(Of.TRAINING), *(key for key in OF_DATA if key != "picture_batch"))
"""Keys of the outer loop and of its data, which a closed-form method alone does not have."""

OF_STEPS = (
    "precision", "teacher_precision", "gradient_checkpointing", "checkpoint_every", "diagnostics_every",
    "diagnostics_subset",
)  # fmt: skip
"""Keys of how the outer loop's steps are taken, kept and looked at."""

ABOUT_META = settings_of(Of.META, Of.ATTACKER)
"""Keys that say something of the meta objective, of the simulated attacker, or of the meta-gradient alone."""


def refuse_ignored(settings: EraseSettings, overrides: Sequence[str]) -> None:
    """UserError when another setting leaves what ``overrides`` say of ``settings`` without effect."""
    given = parse_overrides(overrides)
    said = [key for key in REPLACED_BY_ATTACKERS if key in given]
    if settings.attackers and said:
        raise UserError(
            f"{' and '.join(said)} (--set {said[0]}=...) would be ignored, because attackers holds a mixture of "
            f"{len(settings.attackers)}, each with an optimizer, a learning_rate and steps of its own. Change them "
            "there (--set attackers=[...]), or drop the mixture (--set attackers=[])."
        )
    used = {attacker.optimizer for attacker in settings.simulated}
    for key, optimizers in OF_OPTIMIZER.items():
        if key in given and used.isdisjoint(optimizers):
            raise UserError(
                f"{key} (--set {key}=...) would be ignored, because the simulated attacker's optimizer is "
                f"{' or '.join(sorted(used))}. Choose {' or '.join(optimizers)} (--set inner_optimizer=...), or leave "
                f"{key} out."
            )
    _refuse_without(settings, overrides, NEEDS)


def refuse_ignored_in_one_run(settings: EraseSettings, overrides: Sequence[str]) -> None:
    """As :func:`refuse_ignored`, with what holds for a single run of a method without a defence of its own."""
    _refuse_without(settings, overrides, NEEDS_IN_ONE_RUN)
    if settings.meta_gradient != "first-order" and asked_for(overrides, ("diagnostics_exact",)):
        raise UserError(
            "diagnostics_exact (--set diagnostics_exact=...) would be ignored, because meta_gradient is "
            f"{settings.meta_gradient}, which is exact itself. Set meta_gradient=first-order (--set "
            "meta_gradient=first-order), or leave diagnostics_exact out."
        )


def _refuse_without(settings: EraseSettings, overrides: Sequence[str], needs: Mapping[str, Sequence[str]]) -> None:
    for key in asked_for(overrides, needs):
        for needed in needs[key]:
            if not (value := getattr(settings, needed)):
                said = "false" if value is False else "0"
                raise UserError(
                    f"{key} (--set {key}=...) would be ignored, because {needed} is {said}. Set {needed} as well "
                    f"(--set {needed}=...), or leave {key} out."
                )


def refuse_of_teacher(settings: EraseSettings, overrides: Sequence[str], name: str) -> None:
    """UserError when ``overrides`` say something of the frozen teacher to the closed-form method called ``name``."""
    for key in asked_for(overrides, OF_TEACHER):
        if key != "teacher_precision" or settings.retain_loss != "distillation":
            raise UserError(
                f"{key} (--set {key}=...) would be ignored, because the second stage of a closed-form method ({name}) "
                f"asks no frozen teacher for {'answers' if key == 'teacher_precision' else 'sampling paths'}. Leave "
                f"{key} out, or choose an optimised method (method=..., --method esd-u-1)."
            )


def refuse_without_meta(overrides: Sequence[str]) -> None:
    """UserError when ``overrides`` say something of the meta objective in a call that has none."""
    for key in asked_for(overrides, ABOUT_META):
        raise UserError(
            f"{key} (--set {key}=...) would be ignored, because it is about the meta objective, which this call is "
            f"without (meta=False, --no-meta). Leave {key} out, or erase with the meta objective (meta=True, --meta)."
        )


def asked_for(overrides: Sequence[str], keys: Iterable[str]) -> list[str]:
    """Those of ``keys`` that ``overrides`` give another value than the one that changes nothing."""
    given = parse_overrides(overrides)
    said = [key for key in keys if key in given]
    return [key for key in said if key not in ASKS_NOTHING or _value(key, given[key]) != ASKS_NOTHING[key]]


def _value(key: str, text: str) -> Any:
    """What the setting ``key`` makes of ``text``; what it can make nothing of is refused elsewhere."""
    annotation: Any = EraseSettings.model_fields[key].annotation
    kind: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        return kind.validate_python(text)
    except ValidationError:
        return None if text == "none" else text
