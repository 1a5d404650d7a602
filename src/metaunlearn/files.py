"""Files that are either whole or absent, and never in another's place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError


def check_new_file(out: Path, ending: str = "") -> None:
    """UserError when ``out`` is there already, or its name does not end in ``ending``."""
    if not out.name.endswith(ending):
        raise UserError(f"the output {out} must end in {ending} (out=..., --out FILE).")
    if out.exists():
        raise UserError(f"the output {out} exists already; choose another file (out=..., --out FILE).")


def write_atomic(path: Path, payload: bytes | str) -> None:
    """Write ``payload`` beside ``path``, flush it to disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = payload.encode() if isinstance(payload, str) else payload
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
