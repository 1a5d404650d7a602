"""Files that are either whole or absent, and never in another's place."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, overload

from metaunlearn.errors import UserError

STALE = 3600.0
"""Seconds after which a half-written file that nobody went on with was left by a killed process."""


@overload
def path_of(given: None) -> None: ...
@overload
def path_of(given: Path | str) -> Path: ...
@overload
def path_of(given: Path | str | None) -> Path | None: ...
def path_of(given: Path | str | None) -> Path | None:
    """A path that a user gave, as text or not, if at all; ``~`` is the home folder."""
    if not isinstance(given, str | os.PathLike | None):
        raise UserError(f"expected a path, as text or as a Path; got {given!r}.")
    return None if given is None else Path(given).expanduser()


def needed_path(given: Path | str, option: str) -> Path:
    """The same of what must be given; UserError names the ``option`` when it is not."""
    path: Path | None = path_of(given)
    if path is None:
        raise UserError(f"a path is needed ({option}); got None.")
    return path


def check_new_file(out: Path, ending: str = "") -> None:
    """UserError when ``out`` is there already, or its name does not end in ``ending``."""
    if not out.name.endswith(ending):
        raise UserError(f"the output {out} must end in {ending} (out=..., --out FILE).")
    if out.exists():
        raise UserError(f"the output {out} exists already; choose another file (out=..., --out FILE).")


def write_atomic(path: Path, payload: bytes | str) -> None:
    """Write ``payload`` beside ``path``, flush it to disk, and rename it into place.

    Several processes may write one ``path`` at once: each writes a file of its own, and the last one's stays.
    """
    with whole_or_absent(path) as partial:
        partial.write_bytes(payload.encode() if isinstance(payload, str) else payload)


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; at the end the file there is flushed to disk and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors lets nobody else read what it writes.
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, which is read piece by piece: it may have gigabytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_of(folder: Path, pattern: str = "*") -> list[Path]:
    """Every file below ``folder`` that is called like ``pattern``, behind links to folders, too; or it, if a file."""
    if folder.is_file():
        return [folder]
    # Not rglob, which leaves linked folders out.
    below = (Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in below if fnmatchcase(path.name, pattern) and path.is_file())


def files_hash(folder: Path, pattern: str = "*") -> str:
    """SHA-256 of every file below ``folder`` that is called like ``pattern``: names and contents; of a single file, its
    content."""
    digest = hashlib.sha256()
    for path in files_of(folder, pattern):
        content = sha256(path)
        digest.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()


def partials_of(path: Path) -> Iterator[Path]:
    """What writers of ``path`` have not finished, or left when they were killed."""
    return path.parent.glob(f".{glob.escape(path.name)}.*.partial")


def _sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left: a state of training may have gigabytes."""
    for partial in partials_of(path):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, otherwise: str = "Delete it or run the command that wrote it again.") -> Any:
    """The JSON in ``path``; a file that is unreadable or no JSON is a UserError that names it and the place.

    ``otherwise`` says what to do about one that is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no JSON: byte {error.start} is not UTF-8.") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}. {otherwise}") from None


def read_records(file: Path, *, growing: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in ``file``, one a line, each with its line's number from 1; lines without anything are passed over.

    ``growing``: a run appends to it. A last line without its newline was then cut off by a kill, and is left out.
    UserError names the line that is no object.
    """
    try:
        # Not splitlines(): it also splits at characters that JSON allows inside a string.
        lines = file.read_text(encoding="utf-8", errors="replace" if growing else "strict").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no JSON: byte {error.start} is not UTF-8.") from None
    for number, line in enumerate(lines[:-1] if growing else lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}, is no JSON: {error}.") from None
        if not isinstance(record, dict):
            raise UserError(f"{file}, line {number}: expected one JSON object a line, got {type(record).__name__}.")
        yield number, record
