"""What the tests of attacks share: pictures, and what lies in a saved pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import read_lines
from metaunlearn.attacking import attack
from metaunlearn.attacks.unlearndiffatk import SuccessTest
from metaunlearn.data.imagefolder import write_imagefolder

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT, TEXT_2 = "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
FAST = ("batch_size=2", "checkpoint_every=2")
WANTS_TOKENS: dict[str, tuple[str, ...]] = {
    "textual-inversion": ("initial_token=a", "token=<new>", "templates=a {}"),
    "finetune": ("text_encoder=true",),
    "dreambooth": ("text_encoder=true", "class_prompt=a dog", "prior_images=2"),
}
"""What trains text encoders, or a word of theirs."""
ONE_STEP = ("prefix_tokens=1", "steps_per_timestep=1", "timestep_stride=900", "sampling_steps=1")
"""Of UnlearnDiffAtk: one gradient step, two pictures."""
NEVER = SuccessTest(sees=lambda picture: False, protocol={"rule": "never"})
"""No picture shows the concept."""


def write_pictures(folder: Path, text: str = "a zebra") -> Path:
    """Four random pictures."""
    images = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    write_imagefolder(folder, images, [text] * 4)
    return folder


def changed(one: Path, two: Path, file: str) -> set[str]:
    """Names of tensors in ``file`` that are not bitwise the same in both folders."""
    a, b = bare(one / file), bare(two / file)
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def bare(file: Path) -> dict[str, Tensor]:
    """What is in ``file``; a text encoder's by the names that a module of transformers 5's has for them."""
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's folder, by file and name; hidden folders and state left out."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_run(one: Path, two: Path) -> None:
    """Both folders hold bitwise the same weights and the same log."""
    a, b = tensors(one), tensors(two)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (one / "log.jsonl").read_text() == (two / "log.jsonl").read_text()


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_lines(folder / "log.jsonl")]


def stopped_then_resumed(model: Path, data: Path | None, out: Path, *, after: int, **options: object) -> Path:
    """The attack, interrupted after ``after`` reports of progress, then resumed."""

    def stop(label: str, done: int, total: int) -> None:
        if done == after and label == "attacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(model, data, out=out, progress=stop, **options)  # type: ignore[arg-type]
    attack(model, data, out=out, resume=True, **options)  # type: ignore[arg-type]
    return out
