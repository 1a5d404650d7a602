"""What a folder says to whoever meets it: by its ``run.json``, which run it is of, and whether that is complete; or
that a search lies in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN_FILE = "run.json"
TUNE_FILE, TRIALS_FOLDER, FRONTIER_FILE = "tune.json", "trials", "frontier.md"
"""What a search of ``metaunlearn tune`` keeps in its folder: itself, its trials, and its page."""


def record_of(folder: Path) -> dict[str, Any] | None:
    """The record of the run in ``folder``; None where there is none, or no longer, or somebody else's file."""
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # What lies beside a run comes and goes, and may be anybody's.
        return None
    return record if isinstance(record, dict) and isinstance(record.get("request"), dict) else None


def unfinished(folder: Path) -> str:
    """If the run in ``folder`` is not complete, a space and a sentence for a message about it; else nothing."""
    record = record_of(folder)
    if record is None or record.get("status") == "complete":
        return ""
    command = record["request"].get("command", "a command")
    return f" It holds an unfinished run of {command}: to go on with it, repeat the same call with --resume."
