"""Files that are whole or absent, also when several write one of them at once."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from metaunlearn import checkpoint, files
from metaunlearn.checkpoint import save_tensors
from metaunlearn.diffusion import NoiseSchedule
from metaunlearn.erasure import trajectories
from metaunlearn.files import STALE, sha256, write_atomic
from metaunlearn.models import adapt, load_pipeline
from metaunlearn.pipelines import save_pipeline
from metaunlearn.processes import ALONE


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have written their half before either renames it: each renames its own, and one of them stays."""
    together, replace, broken = threading.Barrier(2), Path.replace, []

    def late(self: Path, target: Path) -> Path:
        together.wait(timeout=60)
        return replace(self, target)

    def write(text: str) -> None:
        try:
            write_atomic(tmp_path / "report.html", text)
        except OSError as error:
            broken.append(error)

    monkeypatch.setattr(Path, "replace", late)
    writers = [threading.Thread(target=write, args=(text * 1000,)) for text in ("a", "b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert broken == []
    assert (tmp_path / "report.html").read_text() in ("a" * 1000, "b" * 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_an_error_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("before")

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomic(tmp_path / "a.json", "after")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.json": "before"}


def test_what_a_killed_writer_left_goes_in_time(tmp_path: Path) -> None:
    """Only that of the same file, and only when nobody can be writing it any more."""
    old = time.time() - 2 * STALE
    for name, age in {".a[1].json.x.partial": old, ".a[1].json.y.partial": None, ".b.json.x.partial": old}.items():
        (tmp_path / name).write_text("half")
        if age is not None:
            os.utime(tmp_path / name, (age, age))
    write_atomic(tmp_path / "a[1].json", "whole")
    assert {file.name for file in tmp_path.iterdir()} == {".a[1].json.y.partial", ".b.json.x.partial", "a[1].json"}


def test_two_runs_that_sample_one_bank_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they have one process number, as in two containers on one file system."""
    bank = SimpleNamespace(tensors=lambda: {"x_t": torch.zeros(1)})
    settings = SimpleNamespace(**dict.fromkeys(trajectories.BANK_SETTINGS, 1))
    schedule = NoiseSchedule(torch.ones(3), "epsilon")
    model = SimpleNamespace(
        fingerprint=lambda: "weights", parameters=dict, schedule=schedule, latent_shape=(1, 2, 2),
        pipeline=SimpleNamespace(config={}),
    )  # fmt: skip
    task: Any = SimpleNamespace(
        shared=tmp_path, settings=settings, model=model, prompts=SimpleNamespace(forget=("a knife",)), seed=0,
        processes=ALONE,
    )  # fmt: skip
    monkeypatch.setattr(trajectories, "sample_for", lambda *_: bank)
    together, replace = threading.Barrier(2), Path.replace

    def late(self: Path, target: Path) -> Path:
        together.wait(timeout=60)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(trajectories.frozen_teachers_bank, [task, task])) == [bank, bank]
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    known = trajectories._bank_file(task)
    model.schedule = NoiseSchedule(torch.ones(3), "v_prediction")
    assert trajectories._bank_file(task) != known, "the same weights, asked otherwise, have other paths"


def test_a_digest_is_that_of_the_whole_content(tmp_path: Path) -> None:
    """Beyond the pieces in which it is read (``hashlib.file_digest``: 256 KiB), and of nothing at all."""
    for content in (b"", bytes(range(256)) * 2049):
        (tmp_path / "file").write_bytes(content)
        assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_tensors_go_to_their_file_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that share memory with one before them, which safetensors refuses."""
    matrix = torch.arange(6.0).view(2, 3)
    given = {
        "matrix": matrix,
        "tied": matrix,
        "row": matrix[1],
        "turned": matrix.T,
        "other": torch.ones(2),
        "none": matrix[:0],
    }
    written: dict[str, torch.Tensor] = {}

    def save_file(tensors: dict[str, torch.Tensor], *rest: Any) -> None:
        written.update(tensors)
        safetensors.torch.save_file(tensors, *rest)

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    checkpoint.save_tensors(tmp_path / "state.safetensors", given, {"step": "3"})
    found, metadata = checkpoint.load_tensors(tmp_path / "state.safetensors")
    assert metadata == {"step": "3"}
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    same = {name for name, tensor in given.items() if tensor.numel() and tensor.data_ptr() == written[name].data_ptr()}
    assert same == {"matrix", "other"}
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_tensors_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, file: Path, *_: object) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save_tensors(tmp_path / "state.safetensors", {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_read_a_runs_record_may_read_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save_pipeline(adapt(load_pipeline(tiny_model)), tmp_path / "saved")
        save_tensors(tmp_path / "state.safetensors", {"p": torch.ones(2)})
    finally:
        os.umask(mask)
    files = [tmp_path / "state.safetensors", *(file for file in (tmp_path / "saved").rglob("*") if file.is_file())]
    assert len(files) > 5
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in files} == {file.name: "0o640" for file in files}
