"""Settings as recipes resolve them: those that a result depends on, and whether they still are what was planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.attacks.brought import GROUP as ATTACKS
from metaunlearn.attacks.registry import configure as configure_attack
from metaunlearn.bench.cells import Cell
from metaunlearn.config import Of, settings_of
from metaunlearn.erasure.interface import DefendedMethod, takes_steps
from metaunlearn.erasure.registry import GROUP as METHODS
from metaunlearn.erasure.registry import Configured, configure
from metaunlearn.errors import UserError
from metaunlearn.metrics.brought import GROUP as METRICS
from metaunlearn.recipe import RecipeFile, read_recipe

META_ONLY = tuple(name for name in settings_of(Of.META, Of.ATTACKER) if name != "attackers")
"""Settings that a run without the meta objective does not read. A mixture of attackers is none of them: drawing one of
it moves the run's other draws, too."""
DRAWN_FIRST = ("inner_steps", "meta_retain")
"""Those of them that move the draws behind theirs: of what a defence, or ``lipschitz_weight``, asks about."""
BRINGING = {"erase": METHODS, "attack": ATTACKS, "evaluate": METRICS}
"""Where what other packages bring to cells of a kind is found."""
NO_INFLUENCE = ("checkpoint_every", "diagnostics_", "inner_store")
"""Beginnings of settings under which the result is the same, bit for bit."""


def of_erasing(chosen: Configured, *, meta: bool, diagnosed: bool = False) -> dict[str, Any]:
    """What an erased model depends on of its settings; with ``diagnosed`` also what the run says of itself."""
    found = {"method_settings": chosen.method_settings, "settings": _that_count(chosen, meta=meta)}
    if chosen.base is not None:
        base = chosen.base
        settings = _that_count(base, meta=False)
        found["base_method"] = {"method": base.name, "method_settings": base.method_settings, "settings": settings}
    if diagnosed:
        every = chosen.settings.model_dump(mode="json")
        found["diagnosed"] = {key: value for key, value in every.items() if "diagnostics_" in key}
    return found


def packages_behind(erasing: Mapping[str, Any]) -> tuple[str, ...]:
    """Packages beside those of every cell that compute what :func:`of_erasing` says, or a stage of it."""
    stages = (erasing, erasing.get("base_method", {}))
    eight_bit = any(stage.get("settings", {}).get("outer_optimizer") == "adamw-8bit" for stage in stages)
    return ("bitsandbytes",) if eight_bit else ()


def of_attack(kind: str, recipe: RecipeFile, overrides: Sequence[str]) -> dict[str, Any]:
    """All settings of an attack."""
    found: dict[str, Any] = configure_attack(kind, recipe, overrides).kind.model_dump(mode="json")
    return found


def without(settings: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    """Those ``settings`` whose names begin otherwise."""
    return {key: value for key, value in settings.items() if not key.startswith(beginnings)}


def check_recipe(cell: Cell) -> None:
    """UserError when the recipe that ``cell`` reads does not give the settings any more that its key was made from."""
    call, spec = cell.call, cell.spec
    if "recipe" not in call:
        return
    recipe, overrides = read_recipe(call["recipe"]), call["overrides"]
    if cell.kind == "erase":
        chosen = configure(call["method"], recipe, overrides)
        now = of_erasing(chosen, meta=call["meta"], diagnosed="diagnosed" in spec)
    elif spec["settings"]:
        every = of_attack(call.get("kind", ON_PROMPTS), recipe, overrides)
        now = {"settings": {key: every.get(key) for key in spec["settings"]}}
    else:  # Of what a donor's attack brings, the donor has the settings.
        return
    changes = list(_changes({part: spec.get(part) for part in now}, json.loads(json.dumps(now))))
    if changes:
        raise UserError(
            f"the recipe {call['recipe']} has changed since this grid was planned ({', '.join(changes)}): put it back, "
            "or start the grid again (recipe=..., RECIPE)."
        )


def check_packages(cell: Cell) -> None:
    """UserError where what another package brings to ``cell`` is not here, or is not what it was planned with."""
    spec = cell.spec
    planned = {name: code for part in (spec, *spec.get("sets", ())) for name, code in part.get("packages", {}).items()}
    here = BRINGING[cell.kind].code(planned) if planned else {}
    changes = [f"{name} is of {here.get(name)}, not {code}" for name, code in planned.items() if here.get(name) != code]
    if changes:
        raise UserError(
            "another package is not the one that this grid was planned with, or not the one elsewhere "
            f"({', '.join(changes)}): install the same everywhere, and start the grid again."
        )


def _that_count(chosen: Configured, *, meta: bool) -> dict[str, Any]:
    if not takes_steps(chosen.method, meta=meta):
        return {}  # A closed-form edit takes no step.
    unread: tuple[str, ...] = () if meta else META_ONLY
    if isinstance(chosen.method, DefendedMethod):
        unread = chosen.method.unread
    if isinstance(chosen.method, DefendedMethod) or chosen.settings.lipschitz_weight:
        unread = tuple(name for name in unread if name not in DRAWN_FIRST)
    return without(chosen.settings.model_dump(mode="json"), NO_INFLUENCE + unread)


def _changes(planned: Any, now: Any, name: str = "") -> list[str]:
    """``learning_rate: 1e-05, now 2e-05`` for each setting that is another one."""
    if isinstance(planned, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*planned, *now])
        return [text for key in keys for text in _changes(planned.get(key), now.get(key), key)]
    return [] if planned == now else [f"{name}: {json.dumps(planned)}, now {json.dumps(now)}"]
