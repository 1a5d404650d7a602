"""One process at a time works on a run's folder: the kernel's lock of it, which ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from metaunlearn.errors import UserError

LOCKS = Path("/proc/locks")
"""Where Linux lists the locks that processes hold."""


def locked(folder: Path) -> int | None:
    """A descriptor of ``folder`` that no other process has locked; None where folders cannot be locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):  # Some shared disks cannot.
            return None
        raise UserError(
            f"another process{_number_of_holder(folder)} is at work on the run in {folder}; wait for it, or choose "
            "another folder (out=..., --out DIR)."
        ) from None
    return descriptor


def _number_of_holder(folder: Path) -> str:
    """``" (1234)"``, the process that has locked ``folder``; nothing where the system does not tell."""
    found = folder.stat()
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:  # 1: FLOCK ADVISORY WRITE 1234 fe:00:3048788 0 EOF
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place:
            return f" ({fields[4]})"
    return ""
