"""From a recipe's ranges and choices to what ``--set`` would say, one trial at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from metaunlearn.config import EraseSettings
from metaunlearn.erasure.registry import Configured, configure, find
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.overrides import as_text
from metaunlearn.recipe import read_recipe
from metaunlearn.tuning.recipe import METHOD, Tune, Vary
from metaunlearn.unheard import REPLACED_BY_ATTACKERS

DIGITS = 4
"""Significant digits of a drawn number, so that a setting can be written down."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """How one trial erases."""

    method: str
    settings: dict[str, str]
    """Over the recipe's, as ``--set`` would say them."""
    meta: bool = True
    """Whether the meta objective is on."""


Ask = Callable[[Vary], Any]
"""Gives a varied setting its value."""


def propose(tune: Tune, ask: Ask) -> Proposal:
    """The trial for which ``ask`` gives the values of what varies, in the recipe's order.

    Beside a mixture of attackers the one attacker's keys are neither asked for nor said: nothing would read them.
    """
    said: dict[str, Any] = {}
    for vary in tune.vary:
        if vary.varies(said) and not (vary.key in REPLACED_BY_ATTACKERS and said.get("attackers")):
            said[vary.key] = ask(vary)
    method = said.pop(METHOD, tune.method)
    return Proposal(method=method, settings={key: as_text(value) for key, value in (tune.set | said).items()})


def rounded(vary: Vary, value: float) -> float | int:
    """A drawn number as it is used: whole where the setting is."""
    return int(value) if in_whole_numbers(vary) else float(f"{value:.{DIGITS}g}")


def in_whole_numbers(vary: Vary) -> bool:
    """Whether the setting takes whole numbers only; of a method's own key the ends of the range say so."""
    field = EraseSettings.model_fields.get(vary.key)
    return field.annotation is int if field is not None else isinstance(vary.low, int) and isinstance(vary.high, int)


def default_of(tune: Tune, meta: bool = True) -> Proposal:
    """The recipe's own settings."""
    return Proposal(method=tune.method, settings={key: as_text(v) for key, v in tune.set.items()}, meta=meta)


def configured(tune: Tune, proposal: Proposal) -> Configured:
    """``proposal`` resolved; UserError when it cannot be."""
    said = [f"{key}={value}" for key, value in proposal.settings.items()]
    return configure(proposal.method, read_recipe(tune.recipe), said)


def default_values(tune: Tune) -> dict[str, Any] | None:
    """The values that the default has of what varies, by the names of the study; None when one is out of range."""
    chosen = configured(tune, default_of(tune))
    values = {**chosen.method_settings, **chosen.settings.model_dump(mode="json"), METHOD: tune.method}
    found: dict[str, Any] = {}

    def ask(vary: Vary) -> Any:
        found[vary.name] = given_value(vary, values[vary.key])
        return values[vary.key]

    try:
        propose(tune, ask)
    except UserError:
        return None
    return found


def given_value(vary: Vary, value: Any) -> Any:
    """``value`` as the study holds it, a number or a choice's text; UserError when it is none of ``vary``'s."""
    if vary.choices:
        texts, text = [as_text(choice) for choice in vary.choices], as_text(value)
        if text in texts:
            return text
        raise UserError(f"{vary.key} = {text} is none of its choices ({', '.join(texts)}).")
    low, high = float(vary.low or 0), float(vary.high or 0)
    if isinstance(value, int | float) and low <= value <= high:
        return int(value) if in_whole_numbers(vary) else float(value)
    raise UserError(f"{vary.key} = {value} is outside of its range, {low:g} to {high:g}.")


def check_space(tune: Tune) -> None:
    """UserError unless every setting exists and takes its ends, or each of its choices, beside the default."""
    chosen = configured(tune, default_of(tune))
    methods = [str(name) for vary in tune.vary if vary.key == METHOD for name in vary.choices] or [tune.method]
    own = {key for name in methods for key in find(name).kind.model_fields}
    known = [METHOD, *type(chosen.settings).model_fields, *sorted(own)]
    for vary in tune.vary:
        if vary.key not in known:
            raise UserError(
                f"vary: unknown key {vary.key!r}.{did_you_mean(vary.key, known)} Known: {', '.join(known)}."
            )
    for pick in (0, -1):
        _try(tune, lambda vary, pick=pick: _ends(vary)[pick])  # type: ignore[misc]
    for one in tune.vary:
        for choice in one.choices:
            _try(tune, lambda vary, one=one, choice=choice: choice if vary is one else _ends(vary)[0])  # type: ignore[misc]
    for values in tune.start:
        _check_start(tune, values)


def _ends(vary: Vary) -> tuple[Any, Any]:
    if vary.choices:
        return vary.choices[0], vary.choices[-1]
    return rounded(vary, vary.low or 0.0), rounded(vary, vary.high or 0.0)


def _try(tune: Tune, ask: Ask) -> None:
    proposal = propose(tune, ask)
    try:
        configured(tune, proposal)
    except UserError as error:
        said = ", ".join(f"{key} = {value}" for key, value in proposal.settings.items())
        raise UserError(f"vary: {error} (tried: method {proposal.method}, {said})") from error


def _check_start(tune: Tune, values: Mapping[str, Any]) -> None:
    keys = {vary.key for vary in tune.vary}
    for key in values:
        if key not in keys:
            raise UserError(f"start: {key!r} does not vary.{did_you_mean(key, keys)} Settings of all trials go to set.")
    start_values(tune, values)


def start_values(tune: Tune, values: Mapping[str, Any]) -> dict[str, Any]:
    """One of the recipe's ``start`` by the names of the study."""
    found: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for vary in tune.vary:
        if vary.key in values and vary.varies(said | dict(values)):
            found[vary.name] = given_value(vary, values[vary.key])
            said[vary.key] = values[vary.key]
    return found
