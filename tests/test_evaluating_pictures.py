"""Pictures that are there already get the scores that they would get while they are drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from colours import COLOURS, ColourJudge
from conftest import TINY_SIZE, Call
from metaunlearn.checkpoint import load_tensors, save_tensors
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import UserError
from metaunlearn.evaluating import evaluate_into
from metaunlearn.evaluating_pictures import evaluate_pictures, evaluate_pictures_into
from metaunlearn.generating import generate_into
from metaunlearn.metrics.nsfw import KIND
from tiny_judges import head_tensors, save_checker, save_clip

PROMPTS = '{"prompt": "a knife", "label": "knife"}\n{"prompt": "a dog", "label": "dog", "seed": 5}\n'


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text(PROMPTS)
    return file


@pytest.fixture(scope="module")
def generated(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of each prompt by ``generate``."""
    folder = tmp_path_factory.mktemp("generated") / "set"
    generate_into(str(tiny_model), prompts, folder, images=2)
    return folder


def painted(folder: Path, texts: tuple[str, ...] = ("red", "green", "blue"), size: int = 8) -> Path:
    """Plain colours with their names as captions."""
    images = torch.zeros(len(texts), 3, size, size)
    for image, text in zip(images, texts, strict=True):
        image[COLOURS.index(text)] = 0.7
    write_imagefolder(folder, images, texts)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "raw.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "file_name"} for line in lines]


def test_generated_pictures_get_the_scores_of_their_model(
    tiny_model: Path, prompts: Path, generated: Path, tmp_path: Path
) -> None:
    """The whole of results.json, protocols included, whoever drew the pictures: ``generate`` or ``evaluate``."""
    write_imagefolder(tmp_path / "real", torch.rand(4, 3, 24, 40), ["x"] * 4)
    options: dict[str, Any] = {
        "metrics": ["concept", "accuracy", "clip-score", "fid"], "judge": "canvas", "concept": "knife",
        "reference": tmp_path / "real",
    }  # fmt: skip
    of_model = evaluate_into(str(tiny_model), prompts, tmp_path / "model", images=2, **options)["results"]
    for name, folder in (("generate", generated), ("evaluate", tmp_path / "model" / "images")):
        found = evaluate_pictures_into(folder, tmp_path / name, prompts=prompts, **options)["results"]
        assert found == of_model == json.loads((tmp_path / name / "results.json").read_text())
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "model")
    assert of_model["concept"]["protocol"]["seeds"] == "0-1 5-6"


def test_pictures_of_another_precision_say_so(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": ["concept"], "judge": "canvas", "concept": "knife"}
    drawn = {"overrides": ["precision=bf16"]}
    of_model = evaluate_into(str(tiny_model), prompts, tmp_path / "model", **drawn, **options)["results"]
    generate_into(str(tiny_model), prompts, tmp_path / "generated", **drawn)
    assert of_model["concept"]["protocol"]["precision"] == "bf16"
    for name, folder in (("a", tmp_path / "generated"), ("b", tmp_path / "model" / "images")):
        assert evaluate_pictures_into(folder, tmp_path / name, prompts=prompts, **options)["results"] == of_model


def test_one_text_under_several_seeds_is_as_many_prompts(tiny_model: Path, tmp_path: Path) -> None:
    """As UnlearnCanvas has it: two rows of the same words with the seeds 188 and 288, a picture each."""
    prompts = tmp_path / "prompts.jsonl"
    row = '{"prompt": "a knife", "label": "knife", "seed": %d}\n'
    prompts.write_text(row % 188 + row % 288)
    options: dict[str, Any] = {"metrics": ["accuracy"], "judge": "canvas"}
    of_model = evaluate_into(str(tiny_model), prompts, tmp_path / "model", **options)["results"]
    found = evaluate_pictures_into(tmp_path / "model" / "images", tmp_path / "out", prompts=prompts, **options)
    assert found["results"] == of_model
    assert of_model["accuracy"]["protocol"]["images_per_prompt"] == 1


def test_a_run_goes_on_with_the_same_pictures_only(generated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_imagefolder(folder, torch.rand(2, 3, 16, 16), ["a knife"] * 2)
    options: dict[str, Any] = {"metrics": ["concept"], "judge": "canvas", "concept": "knife"}
    first = evaluate_pictures_into(folder, tmp_path / "out", **options)
    assert evaluate_pictures_into(folder, tmp_path / "out", resume=True, **options) == first
    Image.new("RGB", (16, 16), "red").save(folder / "000001.png")
    with pytest.raises(UserError, match=r"asked for differently \(content\)"):
        evaluate_pictures_into(folder, tmp_path / "out", resume=True, **options)


def test_a_run_goes_on_with_what_it_was_measured_by_only(
    tiny_model: Path, generated: Path, prompts: Path, tmp_path: Path
) -> None:
    """Judge, checker, head and real pictures stay where they are, and one number of one of them changes."""
    judge, checker, head = save_clip(tmp_path / "clip"), save_checker(tmp_path / "checker"), tmp_path / "h.safetensors"
    save_tensors(head, head_tensors(width=12), {KIND: "laion-nsfw-l14"})
    real = tmp_path / "real"
    write_imagefolder(real, torch.rand(2, 3, 16, 16), ["x"] * 2)
    options: dict[str, Any] = {
        "metrics": ["fid", f"unsafe:{checker}", f"nsfw:{head}", "nudity"], "judge": str(judge), "reference": real
    }  # fmt: skip

    def run(resume: bool) -> None:
        evaluate_pictures_into(generated, tmp_path / "pictures", resume=resume, **options)
        evaluate_into(str(tiny_model), prompts, tmp_path / "model", resume=resume, **options)

    run(resume=False)
    run(resume=True)
    for says, file in (
        ("judge_weights", judge / "model.safetensors"),
        ("checker_weights", checker / "safety_checker" / "model.safetensors"),
        ("head_weights", head),
        ("reference_content", real / "000000.png"),
    ):
        whole = file.read_bytes()
        if file.suffix == ".png":
            Image.new("RGB", (16, 16), "red").save(file)
        else:
            tensors, metadata = load_tensors(file)
            next(iter(tensors.values())).view(-1)[0] += 1
            save_tensors(file, tensors, metadata)
        for out, again in (
            ("pictures", lambda: evaluate_pictures_into(generated, tmp_path / "pictures", resume=True, **options)),
            ("model", lambda: evaluate_into(str(tiny_model), prompts, tmp_path / "model", resume=True, **options)),
        ):
            with pytest.raises(UserError, match=rf"{out} was asked for differently \({says}\)"):
                again()
        file.write_bytes(whole)
    assert "detector_weights" in json.loads((tmp_path / "model" / "run.json").read_text())["request"]


def test_a_plain_folder_is_enough_where_no_metric_asks_for_prompts(tmp_path: Path) -> None:
    """Oblong pictures of any format, measured whole: a crop to the square would lose the right half, which is red."""
    folder, out = tmp_path / "plain", tmp_path / "out"
    folder.mkdir()
    for name, left in (("a.png", "green"), ("b.bmp", "blue"), ("c.webp", "red")):
        picture = Image.new("RGB", (32, 8), "red")
        picture.paste(left, (0, 0, 12, 8))
        picture.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    painted(tmp_path / "real")
    scores = evaluate_pictures(
        folder, metrics=["concept", "fid"], judge=ColourJudge(), concept="red", reference=tmp_path / "real", out=out
    )
    assert (scores["concept"].value, scores["concept"].n) == (100, 3)
    protocol = scores["concept"].protocol
    assert (protocol["image_size"], protocol["sampling"]) == ([8, 32], "unknown")
    assert not {"prompts", "seeds", "guidance_scale", "steps"} & set(protocol)
    row = json.loads((out / "raw.jsonl").read_text().splitlines()[1])
    assert row == {
        "file_name": "b.bmp", "prompt": "", "seed": None, "guidance_scale": None, "concept": {"saw": "red"}
    }  # fmt: skip
    with pytest.raises(UserError, match="already holds"):
        evaluate_pictures(folder, metrics=["concept"], judge=ColourJudge(), concept="red", out=out)


def test_captions_are_the_prompts_and_the_prompts_bring_labels_and_roles(tmp_path: Path) -> None:
    """A folder as img2img leaves it. Red is erased, green in its domain, blue in none: UA 0 of 1, IRA 1 of 1."""
    folder = painted(tmp_path / "set")
    scores = evaluate_pictures(folder, metrics=["clip-score"], judge=ColourJudge())
    assert scores["clip-score"].value == pytest.approx(100)
    assert scores["clip-score"].protocol["images_per_prompt"] == 1
    roles = ("cross-domain", "erased", "in-domain")
    asked = [Prompt(text, label=text, role=role) for text, role in zip(("blue", "red", "green"), roles, strict=True)]
    found = evaluate_pictures(
        folder, metrics=["accuracy", "ua", "ira"], judge=ColourJudge(), prompts=asked, alternatives=["red", "blue"]
    )
    assert [(name, score.value, score.n) for name, score in found.items()] == [
        ("accuracy", 100, 3), ("ua", 0, 1), ("ira", 100, 1)
    ]  # fmt: skip


def test_equal_prompts_keep_their_own_labels_in_the_order_of_the_pictures(tmp_path: Path) -> None:
    folder = painted(tmp_path / "set", ("red", "red", "red", "red"))
    asked = [Prompt("red", label="red"), Prompt("red", label="blue")]
    scores = evaluate_pictures(folder, metrics=["accuracy"], judge=ColourJudge(), prompts=asked)
    assert scores["accuracy"].value == 50
    assert scores["accuracy"].protocol["images_per_prompt"] == 2
    painted(tmp_path / "more", ("red", "red", "red"))
    with pytest.raises(UserError, match="several labels or roles"):
        evaluate_pictures(tmp_path / "more", metrics=["accuracy"], judge=ColourJudge(), prompts=asked)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _cut(folder: Path) -> None:
    file = folder / "000001.png"
    file.write_bytes(file.read_bytes()[:40])


def _no_text(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "000000.png"}\n')


def _no_metadata(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()


def _one(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "000000.png", "text": "red"}\n')


def _another_size(folder: Path) -> None:
    Image.new("RGB", (9, 8)).save(folder / "000002.png")


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (_empty, {"metrics": ["concept"]}, "holds no images"),
        (_cut, {"metrics": ["concept"]}, "000001.png cannot be decoded"),
        (_no_text, {"metrics": ["clip-score"]}, "'text' is missing"),
        (_no_metadata, {"metrics": ["clip-score"]}, "has images but no metadata.jsonl"),
        (_no_metadata, {"metrics": ["concept"], "prompts": [Prompt("red")]}, "has images but no metadata.jsonl"),
        (_one, {"metrics": ["fid"], "reference": True}, r"FID needs at least 2.*\(pictures=, --pictures\) are 1"),
        (_another_size, {"metrics": ["concept"]}, "several sizes: 000000.png is 8 x 8 pixels, 000002.png 9 x 8"),
        (None, {"metrics": ["accuracy"]}, "needs a label for every prompt"),
        (None, {"metrics": ["accuracy"], "prompts": [Prompt("red", label="red")]}, "'green', which is no prompt"),
        (None, {"metrics": ["fid"]}, "--reference"),
        (None, {"metrics": ["clip-scor"]}, "Did you mean 'clip-score'"),
    ],
    ids=["empty", "cut", "no text", "no captions", "no captions to match", "one picture", "two sizes", "no labels",
         "a caption that is no prompt", "no reference", "no such metric"],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None] | None, options: dict[str, Any], says: str
) -> None:
    folder = painted(tmp_path / "set")
    if options.get("reference"):
        options = options | {"reference": painted(tmp_path / "real")}
    if spoil is not None:
        spoil(folder)
    with pytest.raises(UserError, match=says):
        evaluate_pictures(folder, judge=ColourJudge(), concept="red", out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "says", "spoilt"),
    [
        ("L", r"000001.png of .* is grey \(L\), 000000.png is RGB", "pictures"),
        *(
            (mode, says, spoilt)
            for mode, says in (
                ("RGBA", "000001.png of .* is RGBA"),
                ("P", "000001.png of .* is P"),
                ("CMYK", "000001.jpg of .* is CMYK"),
                ("RGB with a transparent colour", "000001.png of .* is RGB with a transparent colour"),
            )
            for spoilt in ("pictures", "reference")
        ),
    ],
)
def test_pictures_of_other_modes_are_refused(tmp_path: Path, mode: str, says: str, spoilt: str) -> None:
    """One of three pictures of one size; as generated ones or as real ones."""
    folders = {name: painted(tmp_path / name) for name in ("pictures", "reference")}
    (folders[spoilt] / "metadata.jsonl").unlink()
    (folders[spoilt] / "000001.png").unlink()
    ending, extra = ("jpg", {}) if mode == "CMYK" else ("png", {"transparency": (0, 0, 0)} if " " in mode else {})
    Image.new(mode.partition(" ")[0], (8, 8)).save(folders[spoilt] / f"000001.{ending}", **extra)
    with pytest.raises(UserError, match=rf"{says}.*") as caught:
        evaluate_pictures(
            folders["pictures"], metrics=["fid"], judge=ColourJudge(), reference=folders["reference"],
            out=tmp_path / "out",
        )  # fmt: skip
    assert f"--{spoilt}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_grey_pictures_are_measured_as_a_whole_set_and_real_ones_beside_others_of_any_size(tmp_path: Path) -> None:
    for name, sizes in (("pictures", ((8, 8), (8, 8))), ("reference", ((8, 8), (30, 9)))):
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes):
            Image.new("L", size, 40 + 9 * number).save(tmp_path / name / f"{number}.png")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "reference" / "2.png")
    options: dict[str, Any] = {"metrics": ["fid"], "judge": ColourJudge(), "reference": tmp_path / "reference"}
    score = evaluate_pictures(tmp_path / "pictures", **options)["fid"]
    assert score.n == 2
    assert score.protocol["resize"].startswith("centre square, bicubic with antialiasing to 8 pixels")


def test_command_line(call: Call, generated: Path, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    looked_for = ("--metrics", "concept,clip-score", "--concept", "knife", "--out", tmp_path / "out")
    outcome = call("evaluate", "--pictures", generated, "--judge", "canvas", *looked_for, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["results"]
    assert found["concept"]["n"] == 4
    assert found["clip-score"]["protocol"]["image_size"] == [TINY_SIZE, TINY_SIZE]
    for says, arguments in (
        ("either MODEL", ()),
        ("either MODEL", (tiny_model, "--pictures", generated)),
        ("--prompts FILE", (tiny_model,)),
        ("--images would do nothing", ("--pictures", generated, "--images", 2)),
        ("does not exist", ("--pictures", tmp_path / "none")),
    ):
        outcome = call("evaluate", *arguments, *looked_for[:-1], tmp_path / "other")
        assert outcome.code == 2
        assert says in outcome.err
        assert not (tmp_path / "other").exists()
