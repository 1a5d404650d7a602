"""The ``imagefolder`` convention: images, and a ``metadata.jsonl`` with one ``{"file_name", "text"}`` object a line.

Shapes: N images, H and W pixels. Everything is checked before the first image is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.files import path_of, sha256, write_atomic
from metaunlearn.records import unfinished

METADATA = "metadata.jsonl"
SHEET = "sheet.png"
"""A contact sheet beside the pictures, which is none of them."""
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

MODES = {"RGB": "RGB", "L": "grey"}
"""What is measured, by Pillow's name of it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageText:
    """Images with their captions, in the order of the metadata."""

    images: Tensor
    """(N, 3, size, size) float32 in [-1, 1]."""
    texts: list[str]
    """N captions."""
    files: list[Path]
    """N paths, for messages."""


@dataclass(frozen=True)
class Entry:
    """One image of a folder, found and safe to open, not yet decoded."""

    file: Path
    text: str


def read_imagefolder(folder: Path | str, *, size: int, default_text: str | None = None) -> ImageText:
    """Read every image of ``folder``: the centre square, resized to ``size`` x ``size`` (bicubic, antialiased).

    ``default_text`` is the caption of images that have none: of all of them when there is no ``metadata.jsonl``.
    Orientation tags are obeyed, transparency goes on white, 16-bit grey is scaled, an animation gives its first frame.
    """
    if size < 1:
        raise UserError(f"Images need a size of at least 1 pixel, got size={size}.")
    entries = list_entries(folder, default_text=default_text)
    images = torch.stack([_decode(entry.file, size) for entry in entries])
    return ImageText(images=images, texts=[entry.text for entry in entries], files=[entry.file for entry in entries])


def write_imagefolder(
    folder: Path | str, images: Tensor, texts: Sequence[str], *, overwrite: bool = False
) -> list[Path]:
    """Write ``images`` (N, 3, H, W) in [0, 1] as 8-bit PNGs with their ``texts``; returns the N paths.

    ``metadata.jsonl`` comes last and whole, so a folder without one is known to be unfinished. A finished folder is
    refused unless ``overwrite`` is given.
    """
    folder = path_of(folder)
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"Expected images of shape (N, 3, H, W), got {tuple(images.shape)}.")
    if len(images) != len(texts):
        raise UserError(f"Expected one text for each image, got {len(images)} images and {len(texts)} texts.")
    if not bool(images.isfinite().all()) or images.amin() < 0 or images.amax() > 1:
        raise UserError("Expected finite pixel values in [0, 1]; pictures in [-1, 1] want (images + 1) / 2 first.")
    if (folder / METADATA).exists() and not overwrite:
        raise UserError(f"{folder} already holds a finished set of images; choose another folder (--out).")
    (folder / METADATA).unlink(missing_ok=True)
    files = write_pictures(folder, images, range(len(images)))
    write_captions(folder, files, texts)
    return files


def picture_file(folder: Path, index: int) -> Path:
    """Where picture ``index`` of a set lies."""
    return folder / f"{index:06d}.png"


def write_pictures(folder: Path, images: Tensor, indices: Iterable[int]) -> list[Path]:
    """Write ``images`` (B, 3, H, W) in [0, 1] as 8-bit PNGs, each numbered by its index in the set."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, pixels in zip(indices, to_uint8(images), strict=True):
        files.append(picture_file(folder, index))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(files[-1])
    return files


def is_intact(file: Path) -> bool:
    """Whether the picture is there, all of it."""
    try:
        with Image.open(file) as opened:
            opened.verify()
    except (OSError, SyntaxError, ValueError):  # PIL says SyntaxError of a broken PNG.
        return False
    return True


def write_captions(folder: Path, files: Sequence[Path], texts: Sequence[str]) -> None:
    """Write ``metadata.jsonl``, which makes the set a finished one."""
    rows = ({"file_name": file.name, "text": text} for file, text in zip(files, texts, strict=True))
    write_atomic(folder / METADATA, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_in_batches(entries: Sequence[Entry], *, size: int, batch_size: int) -> Iterator[Tensor]:
    """The images of ``entries`` as :func:`read_imagefolder` has them, at most ``batch_size`` in memory at a time."""
    for first in range(0, len(entries), batch_size):
        yield torch.stack([_decode(entry.file, size) for entry in entries[first : first + batch_size]])


def fingerprint(folder: Path | str) -> str:
    """SHA-256 of what a reader of ``folder`` gets: names, captions and image bytes, in order; not of where it lies."""
    folder = path_of(folder)
    digest = hashlib.sha256()
    for entry in list_entries(folder, default_text=""):
        content = sha256(entry.file)
        digest.update(json.dumps([entry.file.relative_to(folder).as_posix(), entry.text, content]).encode())
    return digest.hexdigest()


def to_uint8(images: Tensor) -> Tensor:
    """Pixel values in [0, 1] as the 8-bit integers that a PNG holds."""
    return images.detach().cpu().float().mul(255).round().to(torch.uint8)


def as_saved(images: Tensor) -> Tensor:
    """Pixel values in [0, 1] as they come back from a PNG, float32."""
    return to_uint8(images).float() / 255


def list_entries(folder: Path | str, *, default_text: str | None = None) -> list[Entry]:
    """What ``folder`` holds, checked as far as it can be without decoding; at least one entry."""
    folder = path_of(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"The folder of images {folder} {what}. Expected a folder{_captioned(default_text)}.")
    present = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in present if path.suffix.lower() in EXTENSIONS]
    metadata = folder / METADATA
    if not pictures:
        others = sorted({path.suffix for path in present if path != metadata})
        hint = f" (only {', '.join(others)} files)" if others else ""
        raise UserError(f"{folder} holds no images{hint}. Supported: {', '.join(sorted(EXTENSIONS))}.")
    if metadata.is_file():
        entries = _read_metadata(metadata, default_text)
        listed = {entry.file for entry in entries}
        unlisted = [path for path in pictures if path not in listed and path != folder / SHEET]
        if unlisted:
            logger.warning("%d images are not in %s and are left out: %s", len(unlisted), metadata, _some(unlisted))
        return entries
    if default_text is None:
        raise UserError(
            f"{folder} has images but no {METADATA}. Write one, a line for each image: "
            '{"file_name": "a.png", "text": "a photo of ..."}.' + unfinished(folder)
        )
    ignored = [path for path in present if path not in set(pictures)]
    if ignored:
        logger.warning(
            "%d files of %s are not supported images and are left out: %s", len(ignored), folder, _some(ignored)
        )
    return [Entry(_inside(folder, str(path.relative_to(folder)), str(folder)), default_text) for path in pictures]


def _captioned(default_text: str | None) -> str:
    return f" with a {METADATA}, a line with the caption of each image" if default_text is None else ""


def require_modes(entries: Sequence[Entry], what: str, *, mixed: bool = False) -> None:
    """UserError unless the pictures, ``what``, are all RGB or all 8-bit grey: a score of converted ones is another's.

    ``mixed``: grey ones may stand beside RGB, as photographs do in COCO. Read from the files' heads; none is decoded.
    """
    first = ""
    for entry in entries:
        mode = _mode(entry.file)
        first = first or mode
        if mode not in MODES:
            raise UserError(
                f"The picture {entry.file} of {what} is {mode}. Expected RGB in all, or 8-bit grey (L) in all; save it "
                "so, or take it out: any conversion on the way would be part of the score."
            )
        if mode != first and not mixed:
            raise UserError(
                f"The picture {entry.file} of {what} is {MODES[mode]} ({mode}), {entries[0].file.name} is "
                f"{MODES[first]} ({first}). Scores need one mode; save all in the same, or take it out."
            )


def _mode(file: Path) -> str:
    """Pillow's name for a picture's mode, such as RGB, RGBA, P (a palette) or CMYK."""
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as opened:
            clear = opened.has_transparency_data and opened.mode in MODES
            return f"{opened.mode} with a transparent colour" if clear else opened.mode
    except Exception as error:  # Pillow's parsers raise whatever their format's does
        raise _undecodable(file, error) from error


def _read_metadata(metadata: Path, default_text: str | None) -> list[Entry]:
    try:
        # Not splitlines(): it also splits at characters that JSON allows inside a string.
        lines = metadata.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{metadata} is not UTF-8 text: {error}.") from error
    entries = [
        _read_line(metadata, f"{metadata}, line {number}", line, default_text)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not entries:
        raise UserError(f"{metadata} is empty. Expected one JSON object a line, with file_name and text.")
    return entries


def _read_line(metadata: Path, where: str, line: str, default_text: str | None) -> Entry:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error}). Expected an object with file_name and text.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with file_name and text, got {line.strip()[:60]}.")
    name, text = (_text(row, key, default, where) for key, default in (("file_name", None), ("text", default_text)))
    file = _inside(metadata.parent, name, where)
    if file.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{where}: {name!r} is not a supported image. Supported: {', '.join(sorted(EXTENSIONS))}.")
    return Entry(file, text)


def _text(row: Mapping[str, Any], key: str, default: str | None, where: str) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is missing or not text; found the keys: {', '.join(row) or 'none'}.")
    return value


def _inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``, which must be a file in the folder: not above it, not elsewhere through a link."""
    # Windows rules split on both kinds of slash, so a set that is safe here is safe there.
    parts = PureWindowsPath(name)
    file = folder / name
    leaves = bool(parts.anchor) or ".." in parts.parts or "\0" in name
    if leaves or not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name!r} leaves the folder. Expected a path inside {folder}.")
    if not file.is_file():
        raise UserError(f"{where}: there is no file {name!r} in {folder}.")
    return file


def centre_square(images: Tensor, side: int) -> Tensor:
    """Of images (N, 3, H, W), none of whose sides is shorter, the square that :func:`read_imagefolder` reads."""
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    return images[..., top : top + side, left : left + side]


def read_whole(file: Path) -> Tensor:
    """One image as it is, uncropped and in its own size: (3, H, W) uint8."""
    return torch.from_numpy(np.array(_opened(file))).permute(2, 0, 1)


def _decode(file: Path, size: int) -> Tensor:
    """One image as (3, size, size) in [-1, 1]."""
    image = _opened(file)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # Crop within the resize: the resized strip of a very long image would not fit in memory.
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _opened(file: Path) -> Image.Image:
    try:
        # Decoded from memory: Pillow leaves a file open when it fails half-way.
        with Image.open(io.BytesIO(file.read_bytes())) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's decoders raise whatever their format's parser does
        raise _undecodable(file, error) from error


def _undecodable(file: Path, error: Exception) -> UserError:
    if isinstance(error, UnidentifiedImageError):  # Whose own words name an object in memory.
        error = ValueError("it is of no format that Pillow knows, or its beginning is damaged")
    return UserError(f"The image {file} cannot be decoded ({error}). Repair it or remove it from the set.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels outside 0..65535")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
