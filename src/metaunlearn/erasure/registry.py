"""Methods by name: the built-in ones, families whose name holds numbers, and those that other packages bring.

Another package brings a method by an entry point of the group ``metaunlearn.methods``; CONTRIBUTING.md has a template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, cast

from metaunlearn.config import EraseSettings
from metaunlearn.erasure.esd import Esd, Esd2025
from metaunlearn.erasure.imma import Imma
from metaunlearn.erasure.interface import (
    NO_FORGET_LOSS,
    NO_SHARPNESS,
    ClosedFormMethod,
    DefendedMethod,
    FollowingMethod,
    Method,
    OptimisedMethod,
)
from metaunlearn.erasure.names import ALIASES, ESD_NAME, one_name
from metaunlearn.erasure.rece import Rece
from metaunlearn.erasure.resalign import ResAlign
from metaunlearn.erasure.sdd import Sdd
from metaunlearn.erasure.uce import Uce
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.overrides import parse_overrides
from metaunlearn.parameters import SUBSETS
from metaunlearn.plugins import Group
from metaunlearn.recipe import RecipeFile, no_settings
from metaunlearn.settings import Settings, resolve
from metaunlearn.unheard import (
    ABOUT_META,
    FLATNESS,
    OF_DATA,
    OF_STEPS,
    OF_TRAINING,
    REPLACED_BY_ATTACKERS,
    asked_for,
    refuse_ignored,
    refuse_ignored_in_one_run,
    refuse_of_teacher,
    refuse_without_meta,
)

GROUP = Group("metaunlearn.methods", "method", "method=..., --method NAME")
"""Where other packages bring theirs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a name stands for."""

    name: str
    """As records say it."""
    kind: type[Settings]
    """The method's class; its fields are its settings."""
    preset: Mapping[str, Any]
    """Settings that come with the name."""
    fixed: bool = False
    """Whether the name says its preset itself, so that nothing else may."""


BUILT_IN: dict[str, tuple[type[Settings], dict[str, Any]]] = {
    "esd-2025": (Esd2025, {}),
    "sdd": (Sdd, {}),
    "uce-2023": (Uce, {}),
    "uce-2025": (Uce, {"tokens": "last", "guide": "", "keep_empty": False, "preserve_scale": 1.0}),
    "rece": (Rece, {}),
    "resalign": (ResAlign, {}),
    "imma": (Imma, {}),
}
"""Class and preset; the presets of uce-2023 are the defaults of its class."""

EXAMPLES = ("esd-x-1", "esd-u-1", "esd-u-3", "esd-f-3")


def find(name: str) -> Entry:
    """The method called ``name``; UserError when there is none, or more than one."""
    found = _built_in(name)
    theirs = GROUP.find(name, ours=found is not None)
    if found is not None:
        return found
    if theirs is not None:
        return Entry(name=name, kind=_loaded(theirs), preset={})
    known = [*BUILT_IN, *ALIASES, *GROUP.names()]
    raise UserError(
        f"unknown method {name!r} (method=..., --method NAME).{did_you_mean(name, [*EXAMPLES, *known])} "
        f"Known: {', '.join(known)}, and esd-SUBSET-ETA with SUBSET one of {', '.join(SUBSETS)}, e.g. esd-u-1."
    )


def has_defence(name: str) -> bool:
    """Whether the method called ``name`` has a defence of its own, in place of the meta objective."""
    return callable(getattr(find(name).kind, "defend", None))


def heard_by(name: str, recipe: RecipeFile, overrides: Sequence[str]) -> list[str]:
    """Those ``key=value`` of ``overrides``, said to several methods at once, that the method called ``name`` reads.

    One attacker is said to those that have no mixture in the recipe's table of their own.
    """
    entry, said = find(name), parse_overrides(overrides)
    unread = set(getattr(entry.kind, "unread", ()))
    if unread and "attackers" in recipe.methods.get(entry.name, {}) and "attackers" not in said:
        unread |= set(REPLACED_BY_ATTACKERS)
    return [f"{key}={value}" for key, value in said.items() if key not in unread]


def _built_in(name: str) -> Entry | None:
    if not isinstance(name, str):
        return None
    match, name = ESD_NAME.fullmatch(name), one_name(name)
    if match:
        return Entry(name=name, kind=Esd, preset={"subset": match[1], "eta": float(match[2])}, fixed=True)
    if name not in BUILT_IN:
        return None
    kind, preset = BUILT_IN[name]
    return Entry(name=name, kind=kind, preset=preset)


def _loaded(point: EntryPoint) -> type[Settings]:
    """The class behind an entry point, which must be a method."""
    kind, where = GROUP.load_settings(point), GROUP.where(point)
    ways = [word for word in ("begin", "edit", "defend") if callable(getattr(kind, word, None))]
    if len(ways) != 1 or not callable(getattr(kind, "trained", None)):
        raise UserError(
            f"{where} must have trained() and one of begin() (optimised), edit() (closed form) and defend() (with a "
            f"defence of its own); it has {' and '.join(ways) or 'none of them'}."
        )
    lacking = [name for name in ("unread", "gradients") if ways == ["defend"] and not hasattr(kind, name)]
    if lacking:
        raise UserError(f"{where} has a defence of its own, and must have {' and '.join(lacking)} beside defend().")
    taken = sorted(kind.model_fields.keys() & EraseSettings.model_fields.keys())
    if taken:
        raise UserError(f"{where} has settings whose names every method has already: {', '.join(taken)}.")
    return kind


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A method and the settings beside it, ready for a run."""

    name: str
    method: Method
    method_settings: dict[str, Any]
    """The method's own settings, as JSON values."""
    settings: EraseSettings
    """Those that every method has."""
    base: Configured | None = None
    """What erases first, plainly, where the method goes on from another one."""

    @property
    def defended(self) -> bool:
        """Whether the method has a defence of its own, in place of the meta objective."""
        return isinstance(self.method, DefendedMethod)

    def with_meta(self, meta: bool | None) -> bool:
        """Whether the meta objective is on when ``meta`` is asked for; None: where it can be."""
        if not isinstance(meta, bool | None):
            raise UserError(f"the meta objective is on or off (meta=True, meta=False), or None; got {meta!r}.")
        if meta and self.defended:
            raise UserError(
                f"the method {self.name!r} brings a defence of its own, which the meta objective (meta=True, --meta) "
                "would replace: leave that out, or choose another method (method=..., --method esd-u-1)."
            )
        return not self.defended if meta is None else meta

    @property
    def stages(self) -> tuple[Configured, ...]:
        """What erases first, if anything does, and this."""
        return (self,) if self.base is None else (self.base, self)

    @property
    def packages(self) -> dict[str, list[str]]:
        """The code of packages that bring what erases here, by method; none of ours."""
        return GROUP.code(stage.name for stage in self.stages if _built_in(stage.name) is None)

    def record(self) -> dict[str, Any]:
        """As a run's request has it, beside the name: JSON values."""
        mine = {"settings": self.settings.model_dump(), "method_settings": self.method_settings}
        return mine if self.base is None else {**mine, "base": {"method": self.base.name, **self.base.record()}}


_REQUIRED = {name for name, field in EraseSettings.model_fields.items() if field.is_required()}


def configure(name: str, recipe: RecipeFile, overrides: Sequence[str] = ()) -> Configured:
    """The method ``name`` with ``recipe``'s settings and the ``--set`` ``overrides`` on top.

    What holds: ``--set``, then the recipe's table ``[methods.NAME]``, then its ``[erase]``, then the method's preset.
    """
    entry = find(name)
    for table in recipe.methods:
        if _built_in(table) is None:
            find(table)
    given = [recipe.methods.get(entry.name, {}), parse_overrides(overrides)]
    own = entry.kind.model_fields.keys()
    said = sorted(key for key in entry.preset if any(key in values for values in given))
    if entry.fixed and said:
        raise UserError(
            f"the name {entry.name!r} says {' and '.join(said)} itself: change the name "
            "(method=..., --method esd-SUBSET-ETA) rather than the setting (--set)."
        )
    mine: dict[str, Any] = dict(entry.preset)
    # A key that the method has too is the method's: SDD's teacher is the only moving average there (ema_decay).
    shared: dict[str, Any] = {key: value for key, value in recipe.erase.items() if key not in own}
    for values in given:
        mine |= {key: value for key, value in values.items() if key in own}
        shared |= {key: value for key, value in values.items() if key not in own}
    if not recipe.erase and _REQUIRED - shared.keys():
        raise UserError(no_settings(recipe))
    settable = [key for key in own if not (entry.fixed and key in entry.preset)]
    settings = resolve(EraseSettings, shared, keys_elsewhere=settable)
    refuse_ignored(settings, overrides)
    method = resolve(entry.kind, mine)
    if isinstance(method, DefendedMethod):
        _refuse_unread(entry.name, method, given)
    return Configured(
        name=entry.name,
        method=cast(Method, method),  # find() has looked at what its class has
        method_settings=method.model_dump(mode="json"),
        settings=settings,
        base=_base_of(entry.name, method, recipe, settings) if isinstance(method, FollowingMethod) else None,
    )


def unread_by(name: str, *, meta: bool) -> frozenset[str]:
    """Settings that every method shares and a run of the method called ``name`` does not read, by what it is.

    UserError when there is no such method, or none any more.
    """
    kind = find(name).kind
    unread = frozenset(getattr(kind, "unread", () if meta else ABOUT_META))
    closed = hasattr(kind, "edit") and not meta
    return unread | (frozenset(EraseSettings.model_fields) if closed else frozenset())


def check_objective(chosen: Configured, *, meta: bool) -> None:
    """UserError when the settings ask for a loss that the method does not have."""
    if not meta or isinstance(chosen.method, OptimisedMethod):
        return
    if chosen.settings.post_attack_loss == "forget":
        raise UserError(NO_FORGET_LOSS)
    if chosen.settings.sharpness_radius:
        raise UserError(NO_SHARPNESS)


def refuse_unheard(chosen: Configured, overrides: Sequence[str], *, meta: bool) -> None:
    """UserError when nothing in this one run, which is of what is ``chosen``, reads what ``--set`` says.

    For a call that is about one run. A grid, a demo or a search gives the same ``overrides`` to runs with the meta
    objective and to those without, where they mean nothing.
    """
    if chosen.defended:  # A defence says itself what it does not read.
        if chosen.settings.retain_loss != "distillation" and asked_for(overrides, ("teacher_precision",)):
            raise UserError(
                f"teacher_precision (--set teacher_precision=...) would be ignored, because {chosen.name} asks a "
                "teacher only about what is kept, and retain_loss is not distillation. Leave teacher_precision out."
            )
        return
    if not meta:
        refuse_without_meta(overrides)
    if isinstance(chosen.method, ClosedFormMethod):
        if meta:
            refuse_of_teacher(chosen.settings, overrides, chosen.name)
        else:
            _refuse_of_training(chosen, overrides)
    frozen = isinstance(chosen.method, Esd) and chosen.method.latents == "frozen"
    if frozen and asked_for(overrides, ("bank_refresh",)):
        raise UserError(
            "bank_refresh (--set bank_refresh=...) would be ignored, because latents is frozen, and its paths are "
            "sampled once. Set latents=edited (--set latents=edited), or leave bank_refresh out."
        )
    refuse_ignored_in_one_run(chosen.settings, overrides)


def _refuse_of_training(chosen: Configured, overrides: Sequence[str]) -> None:
    """UserError when ``overrides`` say something of the outer loop to a closed-form method that has none."""
    name, own = chosen.name, ("subset", *OF_STEPS) if isinstance(chosen.method, Uce | Rece) else ()
    for key in asked_for(overrides, (*OF_TRAINING, *FLATNESS, *own)):
        raise UserError(
            f"{key} (--set {key}=...) would be ignored, because a closed-form method without the meta objective "
            f"({name}, meta=False, --no-meta) trains nothing. Leave {key} out, or take the meta objective or an "
            "optimised method (method=..., --method esd-u-1)."
        )


def _refuse_unread(name: str, method: DefendedMethod, given: Sequence[Mapping[str, Any]]) -> None:
    """UserError when what is ``given`` for this method holds a setting that it would not hear."""
    said = sorted(key for key in method.unread if any(key in values for values in given))
    if said:
        base = "" if not isinstance(method, FollowingMethod) else (
            f", or set it for the method that erases first (--set base_set={said[0]}=...)"
        )  # fmt: skip
        raise UserError(
            f"the method {name!r} does not read {', '.join(said)} (--set {said[0]}=..., [methods.{name}]), which would "
            f"be ignored: leave it out{base}."
        )


def _base_of(name: str, method: FollowingMethod, recipe: RecipeFile, settings: EraseSettings) -> Configured | None:
    """The base method, with the recipe's settings for it and ``base_set`` on top, and the data of ``settings``."""
    if method.base is None:
        return None
    said = sorted(parse_overrides(method.base_set).keys() & set(OF_DATA))
    if said:
        raise UserError(
            f"{said[0]} in base_set (--set base_set={said[0]}=...) would be ignored, because {name} and its base learn "
            f"from the same pictures: set it for both (--set {said[0]}=...)."
        )
    base = configure(method.base, recipe, method.base_set)
    if base.defended:
        raise UserError(
            f"{name} goes on from a method without a defence of its own; got {base.name!r} "
            "(base, --set base=...): choose e.g. esd-x-1, or none."
        )
    shared = {key: getattr(settings, key) for key in OF_DATA}
    return replace(base, settings=base.settings.model_copy(update=shared))
