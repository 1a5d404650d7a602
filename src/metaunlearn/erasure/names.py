"""Names of methods: which spellings are one name. Nothing heavy is imported, so that recipes are read without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

ALIASES = {"uce": "uce-2023"}

ESD_NAME = re.compile(r"esd-(x|x-strict|first-xattn|u|selfattn|f)-(\d+(?:\.\d+)?)")
"""esd-SUBSET-ETA, with the subsets of :data:`~metaunlearn.parameters.SUBSETS`."""


def one_name(name: str) -> str:
    """``name`` as records say it: of ``uce`` and ``uce-2023``, or ``esd-u-3.0`` and ``esd-u-3``, the latter."""
    if match := ESD_NAME.fullmatch(name):
        return f"esd-{match[1]}-{Decimal(match[2]).normalize():f}"
    return ALIASES.get(name, name)


def by_one_name(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tables ``[methods.NAME]`` by :func:`one_name`; ValueError when two of them are one method's."""
    spelled: dict[str, str] = {}
    for spelling in tables:
        other = spelled.setdefault(one_name(spelling), spelling)
        if other != spelling:
            raise ValueError(
                f"[methods.{_key(other)}] and [methods.{_key(spelling)}] are one method's, of which a file has one "
                f"table: put the keys of both into [methods.{_key(one_name(spelling))}]"
            )
    return {name: tables[spelling] for name, spelling in spelled.items()}


def _key(name: str) -> str:
    """As TOML wants it, where a dot would begin a table inside the table."""
    return f'"{name}"' if "." in name else name
