"""A run whose folder has lost something meanwhile: what can be made again is, and the rest is said."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from attack_fixtures import write_pictures
from conftest import new_tiny_pipeline, same_weights
from metaunlearn import attack, erase
from metaunlearn.data.imagefolder import is_intact
from metaunlearn.errors import UserError
from metaunlearn.generating import generate_into
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.metrics.kept import Kept, read_kept, write_kept
from metaunlearn.models import adapt, load_pipeline
from metaunlearn.pipelines import save_pipeline
from metaunlearn.runs import Progress

FAST = ("batch_size=2", "checkpoint_every=1")
STEPS = (0, 2, 4)


class Stopped(Exception):
    """At a step that a test chose."""


def stop_at(step: int, what: str) -> Progress:
    """Progress that ends the run when ``step`` of ``what`` is done."""

    def progress(label: str, done: int, total: int) -> None:
        if label == what and done == step:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def attacked(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "whole"
    attack(tiny_model, pictures, steps=STEPS, overrides=FAST, out=out)
    return out


@pytest.fixture
def stopped(tiny_model: Path, pictures: Path, tmp_path: Path) -> Path:
    """The same, stopped when the last state that is kept is past its second checkpoint."""
    with pytest.raises(Stopped):
        attack(
            tiny_model, pictures, steps=STEPS, overrides=FAST, out=tmp_path / "run", progress=stop_at(4, "attacking")
        )
    return tmp_path / "run"


@pytest.mark.parametrize("part", ["", "vae"])
def test_a_checkpoint_that_was_deleted_takes_nothing_along(
    tiny_model: Path, pictures: Path, attacked: Path, stopped: Path, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    shutil.rmtree(stopped / "step-000002" / part)
    with caplog.at_level(logging.WARNING):
        result = attack(tiny_model, pictures, steps=STEPS, overrides=FAST, out=stopped, resume=True)
    for folder in (stopped / "step-000004", stopped):
        DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert same_weights(stopped / "step-000004", attacked / "step-000004")
    gone = [] if part else [2]
    assert list(result.checkpoints) == [step for step in STEPS if step not in gone]
    assert list(result.summary["checkpoints"]) == [str(step) for step in STEPS if step not in gone]
    assert ("step-000002 is gone, and is not made again" in caplog.text) == bool(gone)


@pytest.mark.parametrize("steps", [50, 3])
def test_what_does_not_change_is_on_disk_once(tmp_path: Path, steps: int) -> None:
    """However the model is drawn: the usual way, of which no file speaks, or another."""
    pipeline = new_tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    write_sampling(tmp_path / "model", Sampling(steps=steps))
    model = adapt(load_pipeline(tmp_path / "model"))
    one, two = tmp_path / "one", tmp_path / "two"
    save_pipeline(model, one)
    save_pipeline(model, two, twin=one, changed=("unet",))
    weights = "diffusion_pytorch_model.safetensors"
    assert (two / "vae" / weights).samefile(one / "vae" / weights)
    assert not (two / "unet" / weights).samefile(one / "unet" / weights)
    assert sorted(file.name for file in two.iterdir()) == sorted(file.name for file in one.iterdir())


def test_a_complete_run_lists_no_checkpoint_that_was_deleted(
    tiny_model: Path, pictures: Path, attacked: Path, tmp_path: Path
) -> None:
    shutil.copytree(attacked, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "step-000000")
    result = attack(tiny_model, pictures, steps=STEPS, overrides=FAST, out=tmp_path / "run", resume=True)
    assert list(result.checkpoints) == [2, 4]


def test_a_state_that_was_cut_off_says_what_to_do(
    tiny_model: Path, pictures: Path, attacked: Path, stopped: Path
) -> None:
    state = stopped / "state" / "training.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match=r"training\.safetensors is damaged.*Delete it and make the same call again"):
        attack(tiny_model, pictures, steps=STEPS, overrides=FAST, out=stopped, resume=True)
    state.unlink()
    attack(tiny_model, pictures, steps=STEPS, overrides=FAST, out=stopped, resume=True)
    for step in STEPS:
        assert same_weights(stopped / f"step-{step:06d}", attacked / f"step-{step:06d}")


def test_a_bank_that_was_cut_off_says_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    few = ("steps=3", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2")
    call = {"method": "esd-x-1", "meta": False, "overrides": (*few, "checkpoint_every=1")}
    whole = erase(tiny_model, ["zebra"], **call, out=tmp_path / "whole")
    with pytest.raises(Stopped):
        erase(tiny_model, ["zebra"], **call, out=tmp_path / "run", progress=stop_at(2, "erasing"))
    [bank] = (tmp_path / "run" / "state").glob("bank*.safetensors")
    bank.write_bytes(b"")
    with pytest.raises(UserError, match=r"bank.*\.safetensors is damaged"):
        erase(tiny_model, ["zebra"], **call, out=tmp_path / "run", resume=True)
    bank.unlink()
    again = erase(tiny_model, ["zebra"], **call, out=tmp_path / "run", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "run")
    assert whole.summary["method"] == again.summary["method"]


def test_pictures_that_are_gone_or_cut_off_are_drawn_again(tiny_model: Path, tmp_path: Path) -> None:
    call = {"images": 3, "steps": 1, "overrides": ("picture_batch=2",)}
    whole, run = tmp_path / "whole", tmp_path / "run"
    generate_into(str(tiny_model), ["a dog", "a cat"], whole, **call)
    with pytest.raises(Stopped):
        generate_into(str(tiny_model), ["a dog", "a cat"], run, **call, progress=_stop_when_four_are_there)
    (run / "000000.png").unlink()
    cut = run / "000003.png"
    cut.write_bytes(cut.read_bytes()[:40])
    assert not is_intact(cut)
    generate_into(str(tiny_model), ["a dog", "a cat"], run, **call, resume=True)
    for number in range(6):
        name = f"{number:06d}.png"
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def _stop_when_four_are_there(done: int, total: int) -> None:
    if done == 4:
        raise Stopped


def test_a_measured_batch_that_lost_its_features_is_measured_again(tmp_path: Path) -> None:
    part = Kept(indices=[0], size=(8, 8), rows={}, features={"inception": torch.zeros(1, 4)})
    write_kept(tmp_path, 0, part)
    assert read_kept(tmp_path, 0) is not None
    (tmp_path / "00000.safetensors").unlink()
    assert read_kept(tmp_path, 0) is None


def test_a_record_that_was_cut_off_is_not_to_be_deleted_alone(tiny_model: Path, tmp_path: Path) -> None:
    """Without it nothing says what the folder is."""
    erase(tiny_model, ["zebra"], method="uce", meta=False, out=tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UserError, match=rf"run\.json is no JSON.*Choose another folder .*, or delete {tmp_path}"):
        erase(tiny_model, ["zebra"], method="uce", meta=False, out=tmp_path / "run", resume=True)
