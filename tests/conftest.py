"""What several tests share: a tiny but complete Stable Diffusion pipeline, two pictures, and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

import metaunlearn
from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.cli import main
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.meta.train import Algorithm1

TINY_SIZE = 32
"""Pixels a side of the tiny pipeline's pictures; Canvas's have 64."""


def new_tiny_pipeline() -> StableDiffusionPipeline:
    """Random weights in the true classes: 4 x 16 x 16 latents of 32 x 32 pictures, text of width 16."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_attention_heads=2,
                num_hidden_layers=1,
                projection_dim=16,
                vocab_size=len(tokenizer),
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=TINY_SIZE,
        )
        unet = UNet2DConditionModel(
            sample_size=TINY_SIZE // 2,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny pipeline, saved by diffusers; three sampling steps do for it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_tiny_pipeline().save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=3, guidance_scale=2.0))
    return folder


def break_at_the_fourth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, an erasing run's loss is not finite at step 4."""
    whole = Algorithm1._gradient_at_theta

    def breaking(self: Algorithm1, parts: object) -> object:
        gradient, record = whole(self, parts)  # type: ignore[arg-type]
        if self.step == 3:
            record["loss_forget"] = float("nan")
        return gradient, record

    monkeypatch.setattr(Algorithm1, "_gradient_at_theta", breaking)


def process_environment() -> dict[str, str]:
    """Of another process that imports this very package."""
    return {**os.environ, "PYTHONPATH": str(Path(metaunlearn.__file__).parents[1])}


def run_and_kill(script: str, *arguments: object, log: Path, lines: int) -> None:
    """Run Python code in another process with this very package, and SIGKILL it once ``log`` has so many lines."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=process_environment())
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run ``metaunlearn ARGUMENTS`` in this process."""

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An imagefolder of two pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "text": "a knife"} for name in ("a", "b")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
