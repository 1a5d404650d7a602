"""Every bad input that the command line must refuse: exit code 2, a clear message, nothing done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import Call, Outcome


def refused(outcome: Outcome, *says: str, out: Path | None = None) -> None:
    """Exit code 2, a message that says all of ``says``, no traceback, and nothing written."""
    assert outcome.code == 2, outcome
    for text in says:
        assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert out is None or not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--concept", "knife", "--method", "esd-q-1"), ("unknown method 'esd-q-1'", "--method")),
        (("--concept", "knife", "--set", "innner_steps=2"), ("innner_steps", "Did you mean 'inner_steps'")),
        (("--concept", "knife", "--set", "steps"), ("--set takes key=value",)),
        (("--concept", "knife", "--set", "inner_steps=0"), ("inner_steps", "greater than 0")),
        (("--concept", "knife", "--set", "steps=-3"), ("steps", "greater than 0")),
        (("--concept", "knife", "--recipe", "smal"), ("no recipe 'smal'", "Did you mean 'small'")),
        (("--concept", ""), ("--concept",)),
        (("--concept", "knife||axe"), ("--concept",)),
        (("--concept", "knife", "--forget-data", "no such folder"), ("no such folder", "does not exist")),
        (("--concept", "knife", "--method", "esd-u-1", "--set", "guide=noto"), ("the guide 'noto'", "--set guide")),
        (("--concept", "knife", "--method", "imma", "--meta"), ("'imma' brings a defence of its own", "--meta")),
        (("--concept", "knife", "--method", "resalign", "--set", "gamma2=1"), ("does not read gamma2", "--set gamma2")),
        (("--concept", "knife", "--method", "imma", "--set", "targets=to_x"), ("ends with 'to_x'", "--set targets")),
        (("--concept", "knife", "--retain", "none"), ("--retain none", "--retain-data")),
        (("--concept", "knife", "--retain", "none", "--retain", "a cat"), ("--retain", "says 'none'")),
        (("--concept", "knife", "--device", "abacus"), ("no device 'abacus'", "--device")),
    ],
    ids=lambda value: " ".join(value),
)
def test_erase_refuses(
    call: Call, tiny_model: Path, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    refused(call("erase", tiny_model, *options, "--out", out), *says, out=out)


@pytest.mark.parametrize("model", ["no-such-model", "./no/such/folder", "an empty folder", "checkpoint.ckpt"])
def test_a_model_that_is_none_is_refused(
    call: Call, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("an empty folder").mkdir()
    Path("checkpoint.ckpt").write_bytes(b"\x80")
    refused(
        call("erase", model, "--concept", "knife", "--out", "out"), "MODEL", model.removeprefix("./"), out=Path("out")
    )


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _missing(folder: Path) -> None:
    (folder / "b.png").unlink()


def _leaving(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder.parent / "outside.png")
    with (folder / "metadata.jsonl").open("a") as handle:
        handle.write('{"file_name": "../outside.png", "text": "x"}\n')


def _undecodable(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_empty, ("no images",)),
        (_missing, ("metadata.jsonl, line 2", "b.png")),
        (_leaving, ("line 3", "leaves the folder")),
        (_undecodable, ("b.png", "cannot be decoded")),
    ],
)
def test_spoilt_data_is_refused(
    call: Call, tiny_model: Path, pictures: Path, tmp_path: Path, spoil: Callable[[Path], None], says: tuple[str, ...]
) -> None:
    spoil(pictures)
    out = tmp_path / "out"
    refused(call("attack", tiny_model, "--data", pictures, "--steps", "0,1", "--out", out), *says, out=out)
    erase = ("erase", tiny_model, "--concept", "knife", "--forget-data", pictures, "--out", out)
    refused(call(*erase), *says, out=out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--steps", "0,-5"), ("--steps", "0,-5")),
        (("--kind", "finetun"), ("unknown attack 'finetun'", "Did you mean 'finetune'")),
        (("--set", "learning_rat=1"), ("learning_rat", "Did you mean 'learning_rate'")),
        (("--set", "subset=y"), ("subset", "'y'")),
    ],
    ids=lambda value: " ".join(value),
)
def test_attack_refuses(
    call: Call, tiny_model: Path, pictures: Path, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    refused(call("attack", tiny_model, "--data", pictures, *options, "--out", out), *says, out=out)


def test_missing_prompts_are_refused(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        call("generate", tiny_model, "--prompts", tmp_path / "no.txt", "--out", out), "no.txt", "--prompts", out=out
    )
    evaluate = ("evaluate", tiny_model, "--prompts", tmp_path / "no.txt", "--metrics", "concept", "--out", out)
    refused(call(*evaluate), "no.txt", "--prompts", out=out)


def test_unknown_metrics_are_refused(
    call: Call, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a knife\n")
    monkeypatch.setattr("metaunlearn.metrics.judge.load_judge", lambda *_, **__: None)
    arguments = ("evaluate", tiny_model, "--prompts", prompts, "--metrics", "concept,fidd", "--out", out)
    refused(call(*arguments), "'fidd'", "Did you mean 'fid'", out=out)


@pytest.mark.parametrize(
    ("metrics", "option", "value"),
    [
        ("clip-score", "--reference", "nowhere"),
        ("clip-score,ua", "--concept", "knife"),
        ("clip-score,fid", "--alternative", "axe"),
        ("nudity,fid:weights.safetensors", "--judge", "canvas"),
    ],
)
@pytest.mark.parametrize("pictures", [True, False], ids=["pictures", "a model"])
def test_options_that_no_metric_reads_are_refused(
    call: Call, tmp_path: Path, metrics: str, option: str, value: str, pictures: bool
) -> None:
    """Before the model, the prompts or the pictures are looked at: there are none."""
    (tmp_path / "weights.safetensors").write_bytes(b"")
    named = metrics.replace("weights", str(tmp_path / "weights"))
    what = ("--pictures", "nowhere") if pictures else ("nowhere", "--prompts", "nowhere.txt")
    outcome = call("evaluate", *what, "--metrics", named, option, value, "--out", tmp_path / "out")
    refused(outcome, f"{option} (", "would do nothing for --metrics", out=tmp_path / "out")


def test_an_output_that_holds_something_else_is_refused(
    call: Call, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    prompts.write_text("a knife\n")
    for arguments in (
        ("erase", tiny_model, "--concept", "knife"),
        ("attack", tiny_model, "--data", pictures),
        ("generate", tiny_model, "--prompt", "a knife"),
        ("evaluate", tiny_model, "--prompts", prompts, "--metrics", "concept", "--concept", "knife"),
        ("demo",),
    ):
        refused(call(*arguments, "--out", out), "--out")
        assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_a_report_of_nothing_is_refused(call: Call, tmp_path: Path) -> None:
    refused(call("report", tmp_path / "nowhere"), "nowhere")
    refused(call("report", tmp_path), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_concept_that_canvas_does_not_know_is_refused(call: Call, tmp_path: Path) -> None:
    refused(call("demo", "--concept", "knive", "--out", tmp_path / "out"), "Did you mean 'knife'", out=tmp_path / "out")
