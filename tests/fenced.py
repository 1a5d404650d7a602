"""The commands in README.md and docs/: those of the fenced blocks, and those in a sentence.

A block marked ``bash`` is quick: the tests run its commands. One marked ``sh`` is slow: ``make docs-check`` runs it. A
block without a mark has a model or pictures of the reader's own: the tests check its spelling, and ``make docs-check``
runs it on stand-ins. Of a command in a sentence the tests check the spelling, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:metaunlearn|make|python benchmarks/[^`\s]+) ?[^`]*)`(?!`)")


class Command(NamedTuple):
    """A line of a block, its continuations joined and the comment after it left out."""

    page: str
    mark: str
    line: str


def commands(mark: str) -> list[Command]:
    """Every line of every block with this mark, page by page, in order."""
    found = []
    for page in PAGES:
        for language, block in BLOCK.findall(page.read_text()):
            lines = re.sub(r"\\\n\s*", "", block).splitlines() if language == mark else []
            kept = (re.split(r"\s+#\s|\s{3,}(?=[a-z])", line.strip())[0] for line in lines)
            found += [Command(page.relative_to(ROOT).as_posix(), mark, line) for line in kept if line]
    return found


def inline() -> list[Command]:
    """Every command that stands in a sentence between backticks, page by page; the blocks left out."""
    return [
        Command(page.relative_to(ROOT).as_posix(), "inline", " ".join(line.split()))
        for page in PAGES
        for line in INLINE.findall(BLOCK.sub("", page.read_text()))
    ]
