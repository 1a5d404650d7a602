"""Reading and writing folders of images with captions."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaunlearn.data.imagefolder import (
    as_saved,
    fingerprint,
    list_entries,
    read_imagefolder,
    to_uint8,
    write_imagefolder,
)
from metaunlearn.errors import UserError


def save(folder: Path, name: str, image: Image.Image | None = None, **options: object) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), "red")).save(file, **options)
    return file


def describe(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def only_pixels(folder: Path, size: int = 8) -> torch.Tensor:
    """The one image of a folder, (3, size, size), as 8-bit values."""
    return ((read_imagefolder(folder, size=size, default_text="").images[0] + 1) * 127.5).round()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    texts = ["a cat", "línea \u2028 two", ""]
    files = write_imagefolder(tmp_path / "set", pixels / 255, texts)
    read = read_imagefolder(tmp_path / "set", size=16)
    assert read.texts == texts
    assert read.files == files
    assert read.images.dtype == torch.float32
    assert torch.equal(((read.images + 1) * 127.5).round().long(), pixels)


def test_order_is_the_metadata_s_and_subfolders_work(tmp_path: Path) -> None:
    save(tmp_path, "a.png", Image.new("RGB", (4, 4), "black"))
    save(tmp_path, "deep/b.png", Image.new("RGB", (4, 4), "white"))
    describe(tmp_path, {"file_name": "deep/b.png", "text": "white"}, {"file_name": "a.png", "text": "black"})
    read = read_imagefolder(tmp_path, size=4)
    assert read.texts == ["white", "black"]
    assert read.images.amin(dim=(1, 2, 3)).tolist() == [1.0, -1.0]
    assert read.images.amax(dim=(1, 2, 3)).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path, size: int) -> None:
    """The slow reference: resize all of a 24 x 8 image to (3 size) x size, then take the middle third."""
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 24, 3), dtype=np.uint8))
    save(tmp_path, "wide.png", wide)
    middle = wide.resize((3 * size, size), Image.Resampling.BICUBIC).crop((size, 0, 2 * size, size))
    expected = torch.from_numpy(np.array(middle)).permute(2, 0, 1)
    assert (only_pixels(tmp_path, size) - expected).abs().max() <= 1


def test_orientation_tag_is_obeyed(tmp_path: Path) -> None:
    """Orientation 3 is upside down: the bright half moves from the top to the bottom."""
    half = np.zeros((8, 8, 3), dtype=np.uint8)
    half[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    save(tmp_path, "turned.png", Image.fromarray(half), exif=exif)
    pixels = only_pixels(tmp_path)
    assert pixels[:, :4].max() == 0
    assert pixels[:, 4:].min() == 255


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), [255, 0, 0]),
        (Image.new("LA", (8, 8), (0, 51)), [204, 204, 204]),
        (Image.new("RGB", (8, 8), (10, 20, 30)).quantize(2), [10, 20, 30]),
        (palette_with_transparency(), [255, 255, 255]),
        (Image.fromarray(np.full((8, 8), 200 * 257, dtype=np.uint16)), [200, 200, 200]),
        (Image.new("1", (8, 8), 1), [255, 255, 255]),
    ],
    ids=["clear", "opaque", "grey with alpha", "palette", "clear palette", "16 bit", "1 bit"],
)
def test_every_kind_of_png_becomes_rgb_on_white(tmp_path: Path, image: Image.Image, expected: list[int]) -> None:
    save(tmp_path, "one.png", image)
    assert only_pixels(tmp_path).amin(dim=(1, 2)).tolist() == expected
    assert only_pixels(tmp_path).amax(dim=(1, 2)).tolist() == expected


def test_default_text_stands_in(tmp_path: Path) -> None:
    save(tmp_path, "b.png")
    save(tmp_path, "a.jpg")
    assert [file.name for file in read_imagefolder(tmp_path, size=4, default_text="x").files] == ["a.jpg", "b.png"]
    describe(tmp_path, {"file_name": "a.jpg"}, {"file_name": "b.png", "text": "own"})
    assert read_imagefolder(tmp_path, size=4, default_text="x").texts == ["x", "own"]


def refused(folder: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read_imagefolder(folder, size=8, **options)
    return str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    assert "does not exist. Expected a folder with a metadata.jsonl" in refused(tmp_path / "nowhere")
    assert refused(tmp_path / "nowhere", default_text="x").endswith("does not exist. Expected a folder.")
    assert "is a file. Expected a folder" in refused(Path(__file__))
    assert "holds no images" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "only .txt" in refused(tmp_path, default_text="x")
    save(tmp_path, "a.png")
    assert "metadata.jsonl" in refused(tmp_path)
    describe(tmp_path)
    assert "is empty" in refused(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "\xff"}\n')
    assert "UTF-8" in refused(tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{not json", "line 2: not JSON"),
        ('["a.png", "x"]', "line 2: expected an object"),
        ('{"text": "x"}', "line 2: 'file_name' is missing"),
        ('{"file_name": "a.png"}', "line 2: 'text' is missing"),
        ('{"file_name": "a.png", "text": 3}', "line 2: 'text' is missing or not text"),
        ('{"file_name": "b.png", "text": "x"}', "line 2: there is no file 'b.png'"),
        ('{"file_name": "../out.png", "text": "x"}', "line 2: '../out.png' leaves the folder"),
        ('{"file_name": "..\\\\out.png", "text": "x"}', "leaves the folder"),
        ('{"file_name": "/etc/hostname", "text": "x"}', "leaves the folder"),
        ('{"file_name": "C:\\\\a.png", "text": "x"}', "leaves the folder"),
        ('{"file_name": "link.png", "text": "x"}', "leaves the folder"),
        ('{"file_name": "notes.txt", "text": "x"}', "not a supported image"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: str, told: str) -> None:
    folder = tmp_path / "set"
    save(tmp_path, "out.png")
    save(folder, "a.png")
    (folder / "notes.txt").write_text("hello")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + line + "\n")
    assert told in refused(folder)


def test_a_link_out_of_the_folder_is_refused_without_metadata_too(tmp_path: Path) -> None:
    outside = save(tmp_path, "out.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(outside)
    assert "leaves the folder" in refused(tmp_path / "set", default_text="x")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not an image", lambda data: b""]
)
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, damage) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    file = save(tmp_path, "broken.png", noise)
    file.write_bytes(damage(file.read_bytes()))
    assert "broken.png cannot be decoded" in refused(tmp_path, default_text="x")


def test_images_outside_the_metadata_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "a.png")
    save(tmp_path, "spare.png")
    describe(tmp_path, {"file_name": "a.png", "text": "x"})
    with caplog.at_level(logging.WARNING):
        assert len(read_imagefolder(tmp_path, size=4).images) == 1
    assert "spare.png" in caplog.text


def test_an_unfinished_folder_has_no_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(2, 3, 4, 4)
    write_imagefolder(tmp_path / "set", images, ["a", "b"])
    with pytest.raises(UserError, match="finished set"):
        write_imagefolder(tmp_path / "set", images, ["a", "b"])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            write_imagefolder(tmp_path / "set", images, ["a", "b"], overwrite=True)
    assert "metadata.jsonl" in refused(tmp_path / "set")


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (torch.zeros(2, 3, 4, 4), ["a"]),
        (torch.zeros(3, 4, 4), ["a", "b", "c"]),
        (torch.full((1, 3, 4, 4), -1.0), ["a"]),
        (torch.full((1, 3, 4, 4), torch.nan), ["a"]),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, images: torch.Tensor, texts: list[str]) -> None:
    with pytest.raises(UserError, match="Expected"):
        write_imagefolder(tmp_path / "set", images, texts)
    assert not (tmp_path / "set").exists()


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prints = []
    for name, these, texts in [
        ("one", images, ["a", "b"]),
        ("same", images, ["a", "b"]),
        ("text", images, ["a", "c"]),
        ("pixel", images.flip(0), ["a", "b"]),
    ]:
        write_imagefolder(tmp_path / name, these, texts)
        prints.append(fingerprint(tmp_path / name))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_png_holds_the_nearest_level() -> None:
    values = torch.tensor([0.0, 0.4, 0.6, 127.5, 254.4, 254.6, 255.0]) / 255
    assert to_uint8(values).tolist() == [0, 0, 1, 128, 254, 255, 255]
    assert torch.equal(as_saved(values), to_uint8(values).float() / 255)


def test_pictures_without_metadata_are_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file system lists first."""
    for name in ("b.png", "a.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    before, rglob = fingerprint(tmp_path), Path.rglob
    for reverse in (False, True):
        monkeypatch.setattr(Path, "rglob", lambda self, of, r=reverse: sorted(rglob(self, of), reverse=r))
        found = list_entries(tmp_path, default_text="")
        assert [entry.file.name for entry in found] == ["a.png", "b.png", "c.png"]
        assert fingerprint(tmp_path) == before
