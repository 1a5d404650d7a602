"""Whether two runs were asked for alike, and in words where not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from metaunlearn.errors import shortened

CONTENT = {"model": "weights", "pictures": "content", "reference": "reference_content"}
"""Keys of a request that name something, and those of what is in it."""
SHOWN = 3
"""Differences that a message tells in full."""
WIDTH = 40
"""Characters of a value in a message."""


def asked_differently(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which two requests differ. A file or model of another name or path is the same if its content is."""
    named_otherwise = {
        name for name, content in CONTENT.items() if earlier.get(content) and earlier[content] == now.get(content)
    }
    return sorted(key for key in {*earlier, *now} - named_otherwise if earlier.get(key) != now.get(key))


def in_words(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """``"(settings): settings.steps was 5 and is 6"``, of requests that differ."""
    keys = asked_differently(earlier, now)
    found = [one for key in keys for one in _differences(key, earlier.get(key), now.get(key))]
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"({', '.join(keys)}): {', '.join(found[:SHOWN])}{more}"


def _differences(name: str, earlier: Any, now: Any) -> Iterator[str]:
    if isinstance(earlier, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*earlier, *now]):
            if earlier.get(key) != now.get(key):
                yield from _differences(f"{name}.{key}", earlier.get(key), now.get(key))
    else:
        yield f"{name} was {_short(earlier)} and is {_short(now)}"


def _short(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False), WIDTH)
