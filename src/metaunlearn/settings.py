"""Settings: classes whose fields are keys of a recipe and of ``--set``, and clear errors for what does not fit them."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.overrides import as_list, as_text, parse_overrides


class Settings(BaseModel):
    """Frozen, keyword-only; unknown keys and numbers that are not finite are refused.

    ``none`` takes back what a recipe says of a value that may be left out (``--set ema_decay=none``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_from_text(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            key: None if isinstance(value, str) and value == "none" and key in cls._may_be_left_out() else value
            for key, value in values.items()
        }

    @classmethod
    def _may_be_left_out(cls) -> frozenset[str]:
        return frozenset(name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation))


def whole_number(number: Any, option: str) -> int:
    """``number`` as an int, whatever library's it is; UserError names the ``option`` when it is not whole."""
    try:
        return operator.index(number)
    except TypeError:
        raise UserError(f"expected a whole number ({option}), got {number!r}.") from None


class Key(NamedTuple):
    """One key of a recipe and of ``--set``."""

    name: str
    default: str
    """As ``--set`` has it; nothing where a recipe must say it."""
    says: str
    """What it is for, in plain text."""


def keys_of(kind: type[Settings]) -> list[Key]:
    """The fields of ``kind``, in their order."""
    found = []
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() else as_text(field.get_default(call_default_factory=True))
        found.append(Key(name, default, " ".join(ROLE.sub(r"\1", field.description or "").replace("``", "").split())))
    return found


ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
"""What a docstring links to, of which the last name is enough in a terminal."""


Listed = BeforeValidator(as_list)
"""A tuple that ``--set`` may give with commas, ``key=a,b``, or as a recipe does, ``key=["a", "b"]``."""

SettingsType = TypeVar("SettingsType", bound=Settings)


def resolve(
    kind: type[SettingsType],
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    keys_elsewhere: Iterable[str] = (),
) -> SettingsType:
    """``values`` with the ``key=value`` ``overrides`` on top, checked; UserError names what is wrong.

    ``keys_elsewhere`` are keys that ``--set`` also knows but that belong to other settings, for the message.
    """
    try:
        return kind.model_validate({**values, **parse_overrides(overrides)})
    except ValidationError as error:
        raise UserError(explain(error, kind, keys_elsewhere)) from error


def explain(error: ValidationError, kind: type[Settings], keys_elsewhere: Iterable[str] = ()) -> str:
    """What is wrong with the values of ``kind``, in words, and what was meant."""
    problems = []
    if missing := [".".join(map(str, item["loc"])) for item in error.errors() if item["type"] == "missing"]:
        keys = ", ".join(map(repr, missing))
        problems.append(f"the key {keys} is missing." if len(missing) == 1 else f"the keys {keys} are missing.")
    places = [item["loc"] for item in error.errors()]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] != () for place in places):
            continue  # What is wrong inside it is said, and that it is wrong therefore need not be.
        if item["type"] == "extra_forbidden":
            known = [*_settings_at(kind, item["loc"][:-1]).model_fields, *keys_elsewhere]
            meant = did_you_mean(str(item["loc"][-1]), known)
            problems.append(f"unknown key {key!r}.{meant} Known: {', '.join(known)}.")
        elif item["type"] == "missing":
            continue
        elif not key:  # Several settings that do not go together.
            problems.append(f"{item['ctx']['error']}.")
        else:
            said = (
                str(item["ctx"]["error"])
                if item["type"] == "value_error"
                else item["msg"].lower().replace("tuple", "list")
            )
            problems.append(f"{key} = {item['input']!r}: {said}.")
    return " ".join(problems)


def _settings_at(kind: type[Settings], path: Sequence[Any]) -> type[Settings]:
    """The settings that stand at ``path`` inside ``kind``: names of fields, and places in lists or tables of them."""
    for part in path:
        if part in kind.model_fields:
            kind = _settings_in(kind.model_fields[str(part)].annotation) or kind
    return kind


def _settings_in(annotation: Any) -> type[Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for part in get_args(annotation) if (found := _settings_in(part)) is not None), None)
