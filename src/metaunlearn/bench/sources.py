"""Which code and which files a result depends on, as hashes.

The code of a cell is every module of this package that the cell's own module imports, directly or through others. Only
what runs counts: comments and docstrings may change. The command line, reports and documents are never imported there.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import metaunlearn

PACKAGE = "metaunlearn"
ROOT = Path(metaunlearn.__file__).parent
BOOKKEEPING = frozenset(
    {PACKAGE, *(f"{PACKAGE}.{name}" for name in ("errors", "runs", "tracking", "cards", "delta", "publishing"))}
)
"""Modules on which no figure depends: lazy names, messages, records of runs, and what is made of a finished run."""


def code_hash(module: str) -> str:
    """SHA-256 of the code that ``module`` runs, its own included."""
    digest = hashlib.sha256()
    for name in sorted(modules_behind(module)):
        digest.update(f"{name}\n{_code(_file(name))}\n".encode())
    return digest.hexdigest()


@functools.cache
def modules_behind(module: str) -> frozenset[str]:
    """``module`` and every module of this package that it imports, however deep."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name not in BOOKKEEPING:
            found.add(name)
            waiting += _imports(_file(name))
    return frozenset(found)


def _file(name: str) -> Path:
    """A package, or a module: a folder of data may have the name of a module beside it."""
    path = ROOT.joinpath(*name.split(".")[1:])
    package = path / "__init__.py"
    return package if package.is_file() else path.with_suffix(".py")


def _is_module(name: str) -> bool:
    return _file(name).is_file()


@functools.cache
def _imports(file: Path) -> tuple[str, ...]:
    """Modules of this package that ``file`` names in an import, wherever it stands."""

    def named() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return tuple(name for name in named() if name.split(".")[0] == PACKAGE and _is_module(name))


@functools.cache
def _code(file: Path) -> str:
    """What runs of ``file``: its syntax tree without the strings that stand alone."""
    return ast.unparse(_Bare().visit(ast.parse(file.read_text(encoding="utf-8"))))


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node
