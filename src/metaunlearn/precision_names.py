"""Half precision is fp16 to diffusers and float16 to torch: where a precision is named, either will do."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator

LONG = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
SHORT = {"float16": "fp16", "bfloat16": "bf16", "fp32": "float32"}


def long(name: Any) -> Any:
    """``name`` as torch spells it; anything else as it is."""
    return LONG.get(name, name) if isinstance(name, str) else name


def short(name: Any) -> Any:
    """``name`` as the settings spell it, float32 among them; anything else as it is."""
    return SHORT.get(name, name) if isinstance(name, str) else name


LongName = BeforeValidator(long)
ShortName = BeforeValidator(short)
