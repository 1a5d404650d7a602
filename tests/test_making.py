"""Data sets drawn by a generator: resumed, sharded, without duplicates; prompt sets from a user's copy."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_SIZE, Call, new_tiny_pipeline
from metaunlearn import making
from metaunlearn.contact_sheet import contact_sheet
from metaunlearn.data import prompt_sets as sets
from metaunlearn.data.duplicates import Duplicate, difference_hash, find_duplicates
from metaunlearn.data.imagefolder import read_imagefolder, read_whole
from metaunlearn.data.prompt_sets import COCO_ROWS, I2P_NUDITY, I2P_ROWS, take
from metaunlearn.data.prompts import read_prompts
from metaunlearn.data.recipes import RECIPES
from metaunlearn.errors import RunError, UserError
from metaunlearn.files import write_atomic
from metaunlearn.making import make_set
from metaunlearn.models import rebuilt
from metaunlearn.models.singlefile import save_single_file
from metaunlearn.runs import RunFolder
from metaunlearn.sharing import Shard
from tiny_models import NEW, new_sdxl, with_unet

FEW = ["images=7", "batch_size=2", "steps=2", "guidance_scale=2", "near_duplicates=-1"]


class Seeds:
    """A generator whose picture is its seed: no two alike unless their seeds are."""

    config: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, *, same: tuple[int, ...] = (), stop_at: int | None = None) -> None:
        self.same, self.stop_at = same, stop_at
        self.calls: list[dict[str, Any]] = []

    def to(self, *where: object) -> Seeds:
        return self

    def set_progress_bar_config(self, **bar: Any) -> None:
        self._progress_bar_config = bar

    def __call__(
        self, prompt: list[str], generator: list[torch.Generator], output_type: str, guidance_scale: float = 1.0,
        num_inference_steps: int = 1, negative_prompt: list[str] | None = None,
    ) -> Any:  # fmt: skip
        self.calls.append(
            {"prompt": prompt, "seeds": [g.initial_seed() for g in generator], "negative": negative_prompt}
        )
        if self.stop_at is not None and len(self.calls) > self.stop_at:
            raise KeyboardInterrupt
        images = []
        for g in generator:
            drawn = torch.Generator().manual_seed(999 if g.initial_seed() in self.same else g.initial_seed())
            images.append(torch.rand(3, 16, 16, generator=drawn))
        return type("Output", (), {"images": torch.stack(images)})


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of what a reader gets, and of the sheet."""
    names = [*(path.name for path in folder.glob("*.png")), "metadata.jsonl"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


# --- drawing


def test_a_set_is_an_imagefolder_with_a_sheet(tmp_path: Path) -> None:
    painter = Seeds()
    painter.set_progress_bar_config(desc="mine")
    summary = make_set("clean", tmp_path / "clean", generator=painter, overrides=FEW, seed=100)
    assert painter._progress_bar_config == {"desc": "mine"}
    assert (summary["images"], summary["duplicates"], summary["pending"]) == (7, [], 0)
    found = read_imagefolder(tmp_path / "clean", size=16)
    prompts = RECIPES["clean"].prompts
    assert found.texts == [prompts[i % 5] for i in range(7)]
    assert [seed for call in painter.calls for seed in call["seeds"]] == list(range(100, 107))
    expected = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(103))
    assert (found.images[3] / 2 + 0.5 - expected).abs().max() < 0.51 / 255
    with Image.open(tmp_path / "clean/sheet.png") as sheet:
        assert sheet.size == (3 * 16 + 2 * 4, 3 * 16 + 2 * 4)
    again = make_set("clean", tmp_path / "clean", generator=Seeds(stop_at=0), overrides=FEW, seed=100, resume=True)
    assert again["images"] == 7


def test_a_sheet_is_read_line_by_line(tmp_path: Path) -> None:
    """Five pictures in lines of three; the last place is white."""
    colours = [(10 * number, 0, 0) for number in range(5)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 6), colour).save(tmp_path / f"{number}.png")
    sheet = contact_sheet([tmp_path / f"{number}.png" for number in range(5)])
    assert sheet.size == (3 * 8 + 2 * 4, 2 * 6 + 4)
    places = [(left, top) for top in (3, 13) for left in (4, 16, 28)]
    assert [sheet.getpixel(place) for place in places] == [*colours, (255, 255, 255)]


def test_a_killed_set_goes_on_and_shards_give_the_same_files(tmp_path: Path) -> None:
    """Four batches of two: killed after two and resumed; drawn as two shards; drawn whole."""
    make_set("snoopy", tmp_path / "whole", generator=Seeds(), overrides=FEW)
    with pytest.raises(KeyboardInterrupt):
        make_set("snoopy", tmp_path / "killed", generator=Seeds(stop_at=2), overrides=FEW)
    with pytest.raises(UserError, match="--resume"):
        make_set("snoopy", tmp_path / "killed", generator=Seeds(), overrides=FEW)
    rest = Seeds()
    make_set("snoopy", tmp_path / "killed", generator=rest, overrides=FEW, resume=True)
    assert [call["seeds"] for call in rest.calls] == [[4, 5], [6]]
    first, second = Seeds(), Seeds()
    pending = make_set("snoopy", tmp_path / "shards", generator=first, overrides=FEW, shard="1/2")
    assert pending["pending"] == 3
    assert not (tmp_path / "shards/metadata.jsonl").exists()
    make_set("snoopy", tmp_path / "shards", generator=second, overrides=FEW, shard="2/2")
    assert [call["seeds"] for call in first.calls + second.calls] == [[0, 1], [4, 5], [2, 3], [6]]
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed") == contents(tmp_path / "shards")
    with pytest.raises(UserError, match="asked for differently"):
        make_set("snoopy", tmp_path / "shards", generator=Seeds(), overrides=FEW, shard="1/3")


def test_of_shards_that_end_together_one_completes_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither looks whether the set is drawn before both have drawn their last batch; the duplicate is of both."""
    with pytest.raises(KeyboardInterrupt):  # The folder is there; nothing is drawn.
        make_set("clean", tmp_path / "set", generator=Seeds(stop_at=0), overrides=FEW, shard="1/2")
    together, looks = threading.Barrier(2), []

    def write(file: Path, payload: str) -> None:
        write_atomic(file, payload)
        if file.name in {"00002", "00003"}:
            together.wait(timeout=60)

    def find(files: list[Path], *, nearest: int) -> list[Duplicate]:
        looks.append(len(files))
        time.sleep(0.3)  # The other would be at it by then.
        return find_duplicates(files, nearest=nearest)

    def draw(shard: str) -> dict[str, Any]:
        generator = Seeds(same=(2, 5))
        return make_set("clean", tmp_path / "set", generator=generator, overrides=FEW, shard=shard)

    monkeypatch.setattr(making, "write_atomic", write)
    monkeypatch.setattr(making, "find_duplicates", find)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(draw, ("1/2", "2/2")))
    assert looks == [7]
    assert [(one["pending"], one["images"], len(one["duplicates"])) for one in found] == [(0, 6, 1)] * 2
    assert len(read_imagefolder(tmp_path / "set", size=16).texts) == 6
    assert not (tmp_path / "set/state").exists()


@pytest.mark.parametrize("at", ["unlink", "finish"])
def test_a_run_killed_while_it_leaves_duplicates_out_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Before the first duplicate is gone, and after the last: the same set as of a run that was not killed."""
    call: dict[str, Any] = {"generator": Seeds(same=(2, 5, 6)), "overrides": FEW}
    make_set("clean", tmp_path / "whole", **call)

    def kill(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(Path if at == "unlink" else RunFolder, at, kill)
        with pytest.raises(KeyboardInterrupt):
            make_set("clean", tmp_path / "set", **call)
    make_set("clean", tmp_path / "set", **{**call, "generator": Seeds(stop_at=0)}, resume=True)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert not (tmp_path / "set/000006.png").exists()
    assert not (tmp_path / "set/state").exists()


def test_identical_and_near_pictures_are_left_out(tmp_path: Path) -> None:
    summary = make_set("clean", tmp_path / "set", generator=Seeds(same=(2, 5)), overrides=FEW)
    assert summary["duplicates"] == [{"file": "000005.png", "of": "000002.png", "bits": -1}]
    assert summary["images"] == 6
    assert not (tmp_path / "set/000005.png").exists()
    assert len(read_imagefolder(tmp_path / "set", size=16).texts) == 6


def test_what_the_generator_is_asked(tmp_path: Path) -> None:
    painter = Seeds()
    make_set(
        "hrm-s", tmp_path / "a", generator=painter, prompts=["a knife"], overrides=[*FEW, "negative_prompt=a fork"]
    )
    assert painter.calls[0] == {"prompt": ["a knife"] * 2, "seeds": [0, 1], "negative": ["a fork"] * 2}
    with pytest.raises(UserError, match="takes no height"):
        make_set("clean", tmp_path / "b", generator=painter, overrides=[*FEW, "size=8"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("size", "together"), [(None, True), (512, False)])
def test_large_pictures_are_decoded_one_by_one(tmp_path: Path, size: int | None, together: bool) -> None:
    """Four of the tiny model's size go through the autoencoder together, of 512 x 512 not."""
    pipeline, slicing = new_tiny_pipeline(), []
    whole = pipeline.vae.decode

    def decode(latents: torch.Tensor, **options: Any) -> Any:
        slicing.append(pipeline.vae.use_slicing)
        return whole(latents[..., :4, :4], **options)

    pipeline.vae.decode = decode
    pipeline.unet.forward = lambda x, *_, **__: (torch.zeros_like(x),)
    overrides = ["images=4", "steps=1", *([] if size is None else [f"size={size}"])]
    make_set("clean", tmp_path / "out", generator=pipeline, overrides=overrides)
    assert slicing == [not together]
    assert not pipeline.vae.use_slicing


def test_oblong_pictures_of_xl(tmp_path: Path) -> None:
    pipeline = rebuilt(with_unet(new_sdxl, sample_size=[16, 12]))
    make_set("clean", tmp_path / "own", generator=pipeline, overrides=["images=1", "steps=1"])
    assert read_whole(tmp_path / "own" / "000000.png").shape == (3, 32, 24)
    make_set("clean", tmp_path / "asked", generator=pipeline, overrides=["images=1", "steps=1", "size=24"])
    assert read_whole(tmp_path / "asked" / "000000.png").shape == (3, 24, 24)


def test_a_damaged_generator_is_a_run_that_fails(tmp_path: Path) -> None:
    class Broken(Seeds):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return type("Output", (), {"images": super().__call__(*arguments, **options).images * torch.nan})

    with pytest.raises(RunError, match="not finite"):
        make_set("clean", tmp_path / "a", generator=Broken(), overrides=["images=1"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "hrm-m"}, "--prompts FILE"),
        ({"name": "hrm-s", "prompts": ["a knife", "an axe"]}, "exactly one prompt"),
        ({"name": "snopy"}, "Did you mean 'snoopy'"),
        ({"shard": "3/2"}, "--shard"),
        ({"shard": "a"}, "--shard"),
        ({"overrides": ["images=0"]}, "images = '0'"),
        ({"overrides": ["picturs=3"]}, "unknown key"),
        ({"generator": "nowhere/at-all"}, "hf download"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    call = {"name": "clean", "generator": Seeds(), **change}
    with pytest.raises(UserError) as caught:
        make_set(call.pop("name"), tmp_path / "out", **call)
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_real_pipeline_on_the_command_line(call: Call, tmp_path: Path) -> None:
    new_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    words = ["data", "make", "retain-unrelated", "--generator", tmp_path / "tiny", "--out", tmp_path / "set", "--json"]
    outcome = call(*words, *(word for text in FEW for word in ("--set", text)))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["images"] == 7
    with Image.open(tmp_path / "set/000006.png") as picture:
        assert picture.size == (TINY_SIZE, TINY_SIZE)
    assert "kelly-mckernan" in call("data", "list").out
    assert call("data", "make", "hrm-m", "--generator", "canvas", "--out", tmp_path / "x").code == 2


def test_a_checkpoint_of_one_file_draws_what_its_folder_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = NEW["sd1"]()
    pipeline.save_pretrained(tmp_path / "folder")
    save_single_file(pipeline, tmp_path / "model.safetensors")
    index = str(tmp_path / "folder" / "model_index.json")
    monkeypatch.setattr("metaunlearn.models.configuration.try_to_load_from_cache", lambda *_: index)
    for name in ("folder", "model.safetensors"):
        make_set("snoopy", tmp_path / f"of-{name}", generator=str(tmp_path / name), overrides=[*FEW, "images=2"])
    assert contents(tmp_path / "of-folder") == contents(tmp_path / "of-model.safetensors")
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(UserError, match="pickled checkpoints"):
        make_set("snoopy", tmp_path / "x", generator=tmp_path / "model.ckpt", overrides=FEW)


def test_a_shard_is_every_nth() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert list(Shard.parse("2/4").turns(11)) == [1, 5, 9]
    assert list(Shard.parse("1/1").turns(3)) == [0, 1, 2]
    for text in ("0/4", "5/4", "1", "a/b", "-1/2", "0/0", ""):
        with pytest.raises(UserError, match="--shard"):
            Shard.parse(text)


# --- duplicates


def test_the_hash_sees_the_layout_not_the_noise(tmp_path: Path) -> None:
    """Brighter to the right: every bit 1; brighter to the left: every bit 0; a little noise changes at most 2 bits."""
    ramp = Image.linear_gradient("L").rotate(90)
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    smooth = torch.rand(1, 3, 9, 10, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(smooth, size=(63, 70), mode="bilinear")[0]
    noisy = (smooth + 0.02 * torch.randn(3, 63, 70, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    other = torch.rand(3, 63, 70, generator=torch.Generator().manual_seed(3))
    files = []
    for name, image in (("a", smooth), ("b", noisy), ("c", other), ("d", smooth)):
        files.append(tmp_path / f"{name}.png")
        Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(files[-1])
    near = find_duplicates(files, nearest=4)
    assert [(found.index, found.of) for found in near] == [(1, 0), (3, 0)]
    assert 0 <= near[0].distance <= 4
    assert near[1].distance == -1
    assert [found.index for found in find_duplicates(files, nearest=-1)] == [3]


# --- prompt sets


def i2p(file: Path, rows: int = I2P_ROWS, *, cases: bool = True) -> Path:
    """A copy with I2P's columns and harmless words; the order of the rows is turned round where cases tell it."""
    lines = [
        {"prompt": f"a thing number {n}", "categories": "x", "evaluation_seed": 1000 + n, "evaluation_guidance": n % 9}
        for n in range(rows)
    ]
    if cases:
        lines = [{**line, "case_number": n} for n, line in enumerate(lines)][::-1]
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return file


def test_i2p_s_subset_with_each_row_s_seed_and_guidance(call: Call, tmp_path: Path) -> None:
    file = i2p(tmp_path / "i2p.csv")
    outcome = call("data", "prompts", "i2p-nudity", "--from", file, "--out", tmp_path / "p.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    found = read_prompts(tmp_path / "p.jsonl")
    assert len(found) == len(set(I2P_NUDITY)) == 142
    assert [prompt.text for prompt in found] == [f"a thing number {n}" for n in I2P_NUDITY]
    assert [(p.seed, p.guidance_scale) for p in found] == [(1000 + n, n % 9) for n in I2P_NUDITY]


def test_a_copy_without_case_numbers_must_have_the_published_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = i2p(tmp_path / "i2p.csv", cases=False)
    with pytest.raises(UserError, match="seeds differ"):
        take("i2p-nudity", file, tmp_path / "p.jsonl")
    seeds = " ".join(str(1000 + n) for n in I2P_NUDITY)
    monkeypatch.setattr(sets, "I2P_NUDITY_SEEDS", hashlib.sha256(seeds.encode()).hexdigest())
    assert take("i2p-nudity", file, tmp_path / "p.jsonl")["prompts"] == 142
    assert read_prompts(tmp_path / "p.jsonl")[0].text == f"a thing number {I2P_NUDITY[0]}"


def test_coco_from_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COCO_ROWS == 9969
    monkeypatch.setattr(sets, "COCO_ROWS", 300)
    rows = [{"case_number": n, "source": "coco-30k", "prompt": f"a dog {n}", "evaluation_seed": n} for n in range(300)]
    (tmp_path / "coco.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"other captions, or another order .* --from coco_10k.csv"):
        take("coco-10k", tmp_path / "coco.json", tmp_path / "p.jsonl")
    texts = "\n".join(f"a dog {n}" for n in range(300))
    monkeypatch.setattr(sets, "COCO_PROMPTS", hashlib.sha256(texts.encode()).hexdigest())
    assert take("coco-10k", tmp_path / "coco.json", tmp_path / "p.jsonl")["prompts"] == 300
    found = read_prompts(tmp_path / "p.jsonl")
    assert (found[7].text, found[7].seed, found[7].guidance_scale) == ("a dog 7", 7, None)
    (tmp_path / "short.json").write_text(json.dumps(rows[:100]))
    with pytest.raises(
        UserError, match=r"has 100 rows.*curl -L -O .*/prompts/coco_10k.csv && metaunlearn data prompts"
    ):
        take("coco-10k", tmp_path / "short.json", tmp_path / "q.jsonl")


def test_prompt_sets_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **o: None)
    out = tmp_path / "p.jsonl"
    for name, command in (("i2p-nudity", "hf download AIML-TUDA/i2p"), ("coco-10k", "curl -L -O")):
        with pytest.raises(UserError, match=command):
            take(name, None, out)
    with pytest.raises(UserError, match="Did you mean 'coco-10k'"):
        take("coco-30k", None, out)
    with pytest.raises(UserError, match="no column case_number"):
        take("i2p-nudity", i2p(tmp_path / "few.csv", 200, cases=False), out)
    with pytest.raises(UserError, match=r"lacks \d+ of the 142"):
        take("i2p-nudity", i2p(tmp_path / "some.csv", 200), out)
    for wrong in ("abc", "1.5", "nan"):
        rows = [{"prompt": "a thing", "case_number": 1}, {"prompt": "a thing", "case_number": wrong}]
        (tmp_path / "wrong.json").write_text(json.dumps(rows))
        with pytest.raises(UserError, match=f"row 2.*--from.*a whole number, got '{wrong}'"):
            take("i2p-nudity", tmp_path / "wrong.json", out)
    (tmp_path / "none.csv").write_text("text_prompt,seed\nx,1\n")
    with pytest.raises(UserError, match="no column 'prompt'"):
        take("coco-10k", tmp_path / "none.csv", out)
    (tmp_path / "bad.json").write_text('{"prompt": "x"}')
    with pytest.raises(UserError, match="expected a list"):
        take("coco-10k", tmp_path / "bad.json", out)
    assert not out.exists()
    cached = i2p(tmp_path / "cached.csv")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **o: str(cached))
    assert take("i2p-nudity", None, out)["prompts"] == 142
    with pytest.raises(UserError, match="exists already"):
        take("i2p-nudity", None, out)
    with pytest.raises(UserError, match="must end in"):
        take("i2p-nudity", None, tmp_path / "p.csv")


def test_a_set_read_as_data_says_nothing_of_its_sheet_as_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_set("clean", tmp_path / "a", generator=Seeds(), overrides=FEW)
    with caplog.at_level(logging.WARNING):
        assert len(read_imagefolder(tmp_path / "a", size=8).texts) == 7
    assert "sheet.png" not in caplog.text


def _save(folder: Path, name: str, columns: list[int], *, spot: int = 0) -> Path:
    """A picture of 90 x 80 in nine columns of grey, one of whose pixels is a little brighter by ``spot``."""
    pixels = np.repeat(np.array(columns, dtype=np.uint8), 10)[None].repeat(80, axis=0)
    pixels[0, 0] += spot
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_what_a_duplicate_is_a_duplicate_of(tmp_path: Path) -> None:
    """Always of a picture that is kept, even where it is identical to one that was left out."""
    up, down = list(range(10, 100, 10)), list(range(90, 0, -10))
    files = [
        _save(tmp_path, "0.png", up),
        _save(tmp_path, "1.png", up),
        _save(tmp_path, "2.png", down),
        _save(tmp_path, "3.png", down, spot=5),
        _save(tmp_path, "4.png", down, spot=5),
    ]
    identical = [Duplicate(1, 0, -1), Duplicate(4, 3, -1)]
    assert find_duplicates(files, nearest=-1) == identical
    near = [Duplicate(1, 0, -1), Duplicate(3, 2, 0), Duplicate(4, 2, -1)]
    assert find_duplicates(files, nearest=0) == find_duplicates(files, nearest=63) == near


def test_the_same_bytes_in_another_shape_are_another_picture(tmp_path: Path) -> None:
    for name, size in (("wide.png", (8, 4)), ("high.png", (4, 8))):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / name)
    assert find_duplicates([tmp_path / "wide.png", tmp_path / "high.png"], nearest=-1) == []
