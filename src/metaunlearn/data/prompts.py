"""Prompts from a file: ``.txt`` (one a line), ``.csv``, ``.json`` or ``.jsonl`` (with seeds, guidance and labels)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.files import path_of

TEXT = ("prompt", "text")
SEED = ("seed", "sd_seed", "evaluation_seed")
GUIDANCE = ("guidance_scale", "sd_guidance_scale", "evaluation_guidance")
LABEL = ("label",)
ROLE = ("role",)
"""Column names, first match wins; the longer ones are those of the I2P and UnlearnDiffAtk sets."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, and what its set says about how to draw it."""

    text: str
    seed: int | None = None
    """Seed of the first image of this prompt; ``None``: the run's."""
    guidance_scale: float | None = None
    """``None``: the run's."""
    label: str | None = None
    """What a judge should see in the images."""
    role: str | None = None
    """``erased``, ``in-domain`` or ``cross-domain`` in a set for UA, IRA and CRA."""


PromptsGiven = Sequence[Prompt | str] | Prompt | str | Path
"""Prompts as a caller has them: texts, with or without more, or a file (a ``Path``; a text is a prompt)."""


def prompts_of(given: PromptsGiven) -> list[Prompt]:
    """What was ``given`` as a list; UserError for anything that is no prompt."""
    if isinstance(given, Path):
        return read_prompts(given)
    if isinstance(given, str) and given.endswith(tuple(READERS)) and path_of(given).is_file():
        raise UserError(f"{given!r} is a file; for the prompts in it give prompts=Path({given!r}).")
    if not isinstance(given, Prompt | Iterable | None):
        raise UserError(f"expected prompts (prompts=...), as a list or a Path; got {given!r}.")
    prompts = [given] if isinstance(given, Prompt | str) else list(given or ())
    for prompt in prompts:
        if not isinstance(prompt, Prompt | str):
            raise UserError(f"a prompt is a text, or a Prompt (prompts=...), not {prompt!r}.")
    return [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def read_prompts(file: Path | str) -> list[Prompt]:
    """Read the prompts of ``file``; at least one. In ``.txt``, blank lines and lines that start with # are skipped."""
    return [prompt_of(row, f"{file}, line {number}") for number, row in _numbered_rows(path_of(file))]


def read_rows(file: Path | str) -> list[Mapping[str, Any]]:
    """The same file row by row, with all of its columns."""
    return [row for _, row in _numbered_rows(path_of(file))]


def _numbered_rows(file: Path) -> list[tuple[int, Mapping[str, Any]]]:
    if file.suffix.lower() not in READERS:
        raise UserError(f"The prompts file {file} (--prompts) must end in {', '.join(READERS)}.")
    if not file.is_file():
        raise UserError(f"The prompts file {file} (--prompts) does not exist.")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The prompts file {file} (--prompts) is not UTF-8 text: {error}.") from error
    rows = list(READERS[file.suffix.lower()](content, file))
    if not rows:
        raise UserError(f"The prompts file {file} (--prompts) holds no prompts.")
    return rows


Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Line numbers, from 1, and what stands there by column."""


def _rows_of_txt(content: str, file: Path) -> Rows:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {TEXT[0]: line}


def _rows_of_jsonl(content: str, file: Path) -> Rows:
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: expected an object with {TEXT[0]!r}, got {line.strip()[:60]}.")
        yield number, row


def _rows_of_json(content: str, file: Path) -> Rows:
    """A list of objects; the numbers are places in the list."""
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: not JSON ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: expected a list of objects with {TEXT[0]!r}, got {content.strip()[:60]}.")
    yield from enumerate(rows, start=1)


def _rows_of_csv(content: str, file: Path) -> Rows:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    try:
        columns = reader.fieldnames or []
        if content.strip() and not set(TEXT) & set(columns):
            raise UserError(f"{file}: no column {TEXT[0]!r}; found: {', '.join(columns)}.")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not CSV ({error}).") from error


READERS = {".txt": _rows_of_txt, ".csv": _rows_of_csv, ".json": _rows_of_json, ".jsonl": _rows_of_jsonl}
"""By the ending of a file's name."""


def prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    """The prompt in a row of a file; UserError names the place ``where`` it is wrong."""
    text, label, role = (_first(row, names) for names in (TEXT, LABEL, ROLE))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: {TEXT[0]!r} is missing or empty; found: {', '.join(map(str, row)) or 'nothing'}.")
    return Prompt(
        text=text.strip(),
        seed=_seed(_first(row, SEED), where),
        guidance_scale=_guidance(_first(row, GUIDANCE), where),
        label=None if label is None else str(label).strip(),
        role=None if role is None else str(role).strip(),
    )


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that says something."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _seed(value: Any, where: str) -> int | None:
    if value is None:
        return None
    number, text = number_in(value), str(value).strip()
    # Through the text where it is an integer already: a float has only 53 bits of a seed.
    seed = int(text) if text.isdecimal() else number
    if number is None or seed is None or seed != int(seed) or not 0 <= seed < 2**63:
        raise UserError(f"{where}: a seed is a whole number from 0 to 2^63 - 1, got {value!r}.")
    return int(seed)


def _guidance(value: Any, where: str) -> float | None:
    if value is None:
        return None
    number = number_in(value)
    if number is None or number < 0:
        raise UserError(f"{where}: a guidance scale is a number of at least 0, got {value!r}.")
    return number


def number_in(value: Any) -> float | None:
    """``value`` as a finite number, or ``None``."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
