"""From the four npm packages to 64 x 64 RGBA sprites, ``art/STYLE/OBJECT.png``, with the checksum of each source."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

from metaunlearn.canvas.catalog import OBJECTS, STYLES, CanvasObject

SPRITE_SIZE = 64

PACKAGES: dict[str, str] = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent": "fluentui-emoji@1.3.0",
    "openmoji": "openmoji@17.0.0",
}


def fetch_packages(folder: Path) -> dict[str, Path]:
    """Download each package's archive with ``npm pack`` unless it lies in ``folder`` already."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for style, spec in PACKAGES.items():
        archive = folder / (spec.replace("@", "-") + ".tgz")
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archives[style] = archive
    return archives


def sources(style: str, item: CanvasObject) -> tuple[str, ...]:
    """Where a family's package may keep the picture of ``item``, the likeliest first."""
    code = item.code_point
    if style == "fluent":
        return (f"package/icons/modern/{item.fluent}.svg",)
    if style == "openmoji":
        return (f"package/color/svg/{code}.svg", f"package/color/svg/{code}-FE0F.svg")
    vendor = {"noto": "google", "twemoji": "twitter"}[style]
    stem = f"package/img/{vendor}/64/{code.lower()}"
    return (f"{stem}.png", f"{stem}-fe0f.png")


def picture(package: tarfile.TarFile, name: str) -> Image.Image:
    """The picture ``name`` of a package at the size of a sprite, RGBA."""
    return _rasterise(name, read(package, name))


def read(package: tarfile.TarFile, name: str) -> bytes:
    """The bytes of one file of a package."""
    handle = package.extractfile(name)
    assert handle is not None, name
    return handle.read()


def _rasterise(name: str, payload: bytes) -> Image.Image:
    if name.endswith(".svg"):
        import resvg_py

        payload = bytes(resvg_py.svg_to_bytes(svg_string=payload.decode(), width=256, height=256))
    image = Image.open(io.BytesIO(payload)).convert("RGBA")
    return image.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def render_art(packages: Path, art: Path) -> None:
    """Write every sprite and ``sources.json`` (package, file and SHA-256 of each source picture)."""
    used: dict[str, dict[str, dict[str, str]]] = {}
    for style, archive in fetch_packages(packages).items():
        with tarfile.open(archive) as package:
            members = set(package.getnames())
            used[style] = {}
            (art / style).mkdir(parents=True, exist_ok=True)
            for item in OBJECTS:
                name = next((c for c in sources(style, item) if c in members), None)
                if name is None:
                    raise FileNotFoundError(f"{PACKAGES[style]} has no picture of {item.name!r} (U+{item.code_point})")
                payload = read(package, name)
                _rasterise(name, payload).save(art / style / f"{item.name}.png", optimize=True)
                used[style][item.name] = {
                    "file": name.removeprefix("package/"),
                    "sha256": hashlib.sha256(payload).hexdigest(),
                }
    record = {style: {"package": PACKAGES[style], "pictures": used[style]} for style in STYLES}
    (art / "sources.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
