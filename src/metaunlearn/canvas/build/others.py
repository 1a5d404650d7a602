"""Other emoji of the same four families: pictures that say what a style is, whatever they show.

Canvas's 64 objects are few, so a model may learn each of them in each style by heart. These have no names in any
caption, only their style, and teach the denoiser and the judge to tell it from what is drawn. They are not shipped.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaunlearn.canvas import scenes
from metaunlearn.canvas.build.render import fetch_packages, picture, read, sources
from metaunlearn.canvas.catalog import NAMES, OBJECTS, STYLES, CanvasObject
from metaunlearn.checkpoint import load_tensors, save_tensors

LEFT_OUT = {"Flags", "Symbols", "Component", "Smileys & Emotion"}
"""Categories without things, or with a hundred nearly equal faces."""
OWN_WORDS = {word for name in NAMES for word in re.split(r"[ -]", name)} - {"and", "o"}


def other_sprites(packages: Path, file: Path) -> Tensor:
    """Sprites of every other emoji that all four families draw, (M, styles, 4, 64, 64); kept in ``file``."""
    if not file.exists():
        save_tensors(file, {"sprites": _render(packages)})
    return load_tensors(file)[0]["sprites"]


def split(sprites: Tensor) -> tuple[Tensor, Tensor]:
    """The sprites to train with, and every sixth, kept out to see what a model knows of styles in general."""
    kept_out = torch.arange(len(sprites)) % 6 == 5
    return sprites[~kept_out], sprites[kept_out]


def draw(sprites: Tensor, count: int, generator: torch.Generator) -> scenes.Scenes:
    """``count`` random pictures of other emoji; their object is -1."""
    rows = torch.randint(len(sprites), (count,), generator=generator)
    styles = torch.randint(len(STYLES), (count,), generator=generator)
    backgrounds = scenes.random_backgrounds(count, generator)
    images = scenes.place(sprites[rows, styles], backgrounds, generator)
    return scenes.Scenes(images=images, objects=torch.full((count,), -1), styles=styles, backgrounds=backgrounds)


def _render(packages: Path) -> Tensor:
    with ExitStack() as stack:
        archives = {s: stack.enter_context(tarfile.open(file)) for s, file in fetch_packages(packages).items()}
        names = {style: set(archive.getnames()) for style, archive in archives.items()}
        rows = []
        for item in nameless_emoji(json.loads(read(archives["noto"], "package/emoji.json"))):
            found = [next((name for name in sources(style, item) if name in names[style]), "") for style in STYLES]
            if all(found):
                pictures = [picture(archives[style], name) for style, name in zip(STYLES, found, strict=True)]
                rows.append(torch.stack([scenes.to_sprite(one) for one in pictures]))
    return torch.stack(rows)


def nameless_emoji(entries: list[dict[str, Any]]) -> Iterator[CanvasObject]:
    """The single-code things of ``emoji.json`` that share no word with Canvas's objects, so no unseen pair."""
    own = {item.code_point for item in OBJECTS}
    for entry in entries:
        code = entry["unified"].removesuffix("-FE0F")
        name = (entry.get("name") or entry["short_name"]).lower()
        words = set(re.split(r"[^a-z]+", " ".join([name, *entry["short_names"]])))
        if "-" in code or code in own or words & OWN_WORDS or entry["category"] in LEFT_OUT:
            continue
        stem = re.sub(r"[’,]", "", name).replace(" ", "-")
        yield CanvasObject(name=name, code_point=code, group="other", fluent=stem)
