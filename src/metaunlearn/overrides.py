"""What is said over a recipe's settings: ``--set KEY=VALUE``, and ``overrides=`` in Python.

Inside it is one form, texts ``key=value``, which commands print and runs record. Of a mapping, a value that is no text
is written as TOML has it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from metaunlearn.errors import UserError

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str]
"""``{"steps": 300, "guide": ["a dog"]}``, or as on the command line ``["steps=300", "guide=a dog"]``."""


def as_overrides(said: Overrides) -> list[str]:
    """``{"steps": 5}`` as ``--set`` would say it, ``["steps=5"]``; texts, or a single one, as they are."""
    if isinstance(said, str):
        return [said]
    if isinstance(said, Mapping):
        return [f"{key}={as_text(value)}" for key, value in said.items()]
    if not isinstance(said, Iterable | None):
        raise UserError(f"expected settings (overrides=, --set), as {{key: value}} or key=value; got {said!r}.")
    return list(said or ())


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """``["steps=5"]`` → ``{"steps": "5"}``."""
    parsed = {}
    for item in overrides:
        key, separator, value = item.partition("=") if isinstance(item, str) else ("", "", "")
        if not separator:
            raise UserError(f"--set takes key=value, got {item!r}; in Python, overrides= takes {{key: value}} as well.")
        parsed[key.strip()] = value.strip()
    return parsed


def as_text(value: Any) -> str:
    """A value as ``--set`` would say it."""
    return "none" if value is None else value if isinstance(value, str) else as_toml(value)


def as_toml(value: Any) -> str:
    """A value of a recipe as TOML says it on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {as_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if hasattr(value, "item"):  # A number of NumPy's or torch's.
        value = value.item()
    if not isinstance(value, str | bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON allows it inside a text, TOML not.


def _key(name: Any) -> str:
    return str(name) if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else as_toml(str(name))


def as_list(value: Any, separator: str = ",") -> Any:
    """What ``--set`` says of a list: TOML's, ``["a", "b"]``, or its parts with a ``separator`` between them.

    Anything but a text is returned as it is. Raises ValueError, for a settings' validator, when it is neither.
    """
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(separator) if part.strip()]
    try:
        return tomllib.loads(f"list = {value}")["list"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f'expected a list, ["A", "B"] ({error})') from error
