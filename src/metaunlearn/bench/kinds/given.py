"""The attacker's pictures as the call gave them: a copy, so that they are what the key says, on every machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from metaunlearn.data.imagefolder import fingerprint
from metaunlearn.errors import UserError
from metaunlearn.runs import Progress


def make(folder: Path, *, source: str, wanted: str, device: str, progress: Progress | None) -> None:
    """``folder`` as the imagefolder ``source``, whose fingerprint is ``wanted``."""
    shutil.rmtree(folder)  # What was copied of it before a kill, or before it changed.
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    if fingerprint(folder) != wanted:
        raise UserError(f"{source} (use=[...], --use) has changed since this grid was planned; start it again.")
