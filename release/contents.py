"""What the wheel and the source archive must hold, and that they hold nothing else."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "metaunlearn"
LIMIT = 30_000_000
"""Bytes of a wheel, and of a source archive."""
STRAY = ("__pycache__", ".pyc", ".DS_Store", ".egg-info")
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE", "licenses/NOTICE"}
AT_THE_ROOT = {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "PKG-INFO", "setup.cfg", "MANIFEST.in"}


def package_files() -> set[str]:
    """Every file of the package, as a wheel names it: modules, weights, artwork, recipes, templates, published data."""
    files = (file for file in SOURCE.rglob("*") if file.is_file())
    return {file.relative_to(SOURCE.parent).as_posix() for file in files if not _stray(file.as_posix())}


def problems_of_wheel(wheel: Path) -> list[str]:
    """What is missing from ``wheel``, what it should not hold, and whether it is too large; empty when it is good."""
    name, version = wheel.name.split("-")[:2]
    wanted = package_files() | {f"{name}-{version}.dist-info/{file}" for file in METADATA}
    with zipfile.ZipFile(wheel) as archive:
        found = {entry for entry in archive.namelist() if not entry.endswith("/")}
    return _differences(wheel, wanted, found)


def problems_of_sdist(sdist: Path) -> list[str]:
    """The same of the source archive."""
    with tarfile.open(sdist) as archive:
        inside = (member.name.partition("/")[2] for member in archive.getmembers() if member.isfile())
        found = {name for name in inside if ".egg-info/" not in name}
    return _differences(sdist, {f"src/{file}" for file in package_files()} | AT_THE_ROOT, found)


def _differences(archive: Path, wanted: set[str], found: set[str]) -> list[str]:
    size = archive.stat().st_size
    return [
        *(f"{archive.name} lacks {name}" for name in sorted(wanted - found)),
        *(f"{archive.name} should not hold {name}" for name in sorted(found - wanted)),
        *([f"{archive.name} has {size:,} bytes, more than {LIMIT:,}"] if size > LIMIT else []),
    ]


def _stray(name: str) -> bool:
    return any(re.search(re.escape(part) + r"(/|$)", name) for part in STRAY)
