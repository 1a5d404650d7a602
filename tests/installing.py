"""Packages of others: what CONTRIBUTING.md gives as templates, and what pip leaves of a package."""

from __future__ import annotations

import re
from pathlib import Path

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def template(of: str) -> tuple[dict[str, str], str]:
    """The entry points and the module of ``of``, such as "An attack": the example in its section."""
    section = CONTRIBUTING.read_text().partition(f"### {of} in a package of your own\n")[2].partition("\n### ")[0]
    [source], [entries] = (re.findall(rf"```{kind}\n(.*?)```", section, flags=re.DOTALL) for kind in ("python", "toml"))
    return dict(re.findall(r"(\w+) = \"(.+)\"", entries)), source


def install(
    folder: Path, package: str, entries: dict[str, str], source: str = "", *, group: str = "metaunlearn.methods"
) -> None:
    """A package as pip leaves it: a module and what importlib.metadata reads."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    (folder / f"{package}.py").write_text(source)


def module(name: str, source: str) -> str:
    """A name for a module of this content: Python keeps what it has imported."""
    return f"{name}{abs(hash(source))}"


def brought(packages: Path, group: str, name: str, source: str, kind: str = "Theirs") -> str:
    """The package ``source`` with the class ``kind`` as ``name``, which is made one of its own; returns that."""
    package = module("theirs", source)
    own = f"{name}{abs(hash(source))}"
    install(packages, package, {own: f"{package}:{kind}"}, source, group=group)
    return own


def example(packages: Path, of: str, group: str) -> str:
    """Installs CONTRIBUTING.md's example; returns its name."""
    entries, source = template(of)
    [(name, target)] = entries.items()
    install(packages, target.partition(":")[0], entries, source, group=group)
    return name
