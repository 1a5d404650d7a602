"""The steps that build Canvas: growing and whitening the autoencoder, losses, and a training loop that resumes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaunlearn.canvas.build import others
from metaunlearn.canvas.build.autoencoder import (
    LATENT_CHANNELS,
    SMALL_CHANNELS,
    SMALL_LATENT_CHANNELS,
    grown,
    new_autoencoder,
    reconstruction_loss,
    whiten,
)
from metaunlearn.canvas.build.clip import contrastive_loss
from metaunlearn.canvas.build.denoiser import prompt_for
from metaunlearn.canvas.build.harder import hue_matrices, place_harder, recolour
from metaunlearn.canvas.build.loop import run_stage
from metaunlearn.canvas.catalog import NAMES, STYLES


def test_grown_autoencoder_keeps_the_small_ones_outer_levels() -> None:
    small = new_autoencoder(SMALL_CHANNELS, SMALL_LATENT_CHANNELS)
    large, weights = grown(small), small.state_dict()
    images = torch.rand(2, 3, 64, 64)
    assert large.encode(images).latent_dist.mean.shape == (2, LATENT_CHANNELS, 8, 8)
    assert large.decode(torch.zeros(2, LATENT_CHANNELS, 8, 8)).sample.shape == images.shape
    for ours, theirs in (
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        ("decoder.up_blocks.1.resnets.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"),
        ("decoder.conv_out.weight", "decoder.conv_out.weight"),
    ):
        assert torch.equal(large.state_dict()[ours], weights[theirs])


@torch.no_grad()
def test_whitening_changes_the_latents_and_not_the_pictures() -> None:
    vae = new_autoencoder(SMALL_CHANNELS, SMALL_LATENT_CHANNELS).eval()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = vae.encode(images).latent_dist
    pictures = vae.decode(before.mean).sample
    whiten(vae, images, floor=0.0)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(vae.decode(after.mean).sample, pictures, atol=1e-4, rtol=0)
    rows = after.mean.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows @ rows.T / rows.shape[1], torch.eye(4), atol=1e-3, rtol=0)
    assert after.std.flatten(2).std(dim=(0, 2)).max() < 1e-6
    assert vae.config.scaling_factor == 1


@torch.no_grad()
def test_whitening_leaves_what_hardly_varies_small() -> None:
    """Under a floor far above every variance the whitening is a common factor: ratios of variances stay."""
    vae = new_autoencoder(SMALL_CHANNELS, SMALL_LATENT_CHANNELS).eval()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = vae.encode(images).latent_dist.mean.var(dim=(0, 2, 3))
    whiten(vae, images, floor=1e6)
    after = vae.encode(images).latent_dist.mean.var(dim=(0, 2, 3))
    torch.testing.assert_close(after / after.sum(), before / before.sum(), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.mean(), torch.tensor(1.0), atol=1e-2, rtol=0)


def test_reconstruction_loss_by_hand() -> None:
    """An error of 1 in one of four pixels: 1/4; each direction's two differences hold one error: 1/2 * (1/2 + 1/2)."""
    target, output = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    output[0, 0, 0, 0] = 1
    assert reconstruction_loss(output, target).item() == pytest.approx(0.25 + 0.5)


def test_contrastive_loss_with_two_positives() -> None:
    """Equal logits over four columns, two of them right: -log(2/4)."""
    positive = torch.tensor([[True, True, False, False]])
    assert contrastive_loss(torch.zeros(1, 4), positive).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_prompts_name_the_object_or_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [prompt_for([0, 1, 1], generator) for _ in range(300)]
    assert 10 < prompts.count("") < 60
    assert sum("knife" in prompt or "twemoji" in prompt for prompt in prompts) == len(prompts) - prompts.count("")
    assert any("grey background" in prompt for prompt in prompts)


def test_prompts_of_other_emoji_name_their_style_only() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = {prompt_for([-1, 1, 1], generator) for _ in range(300)}
    assert "" in prompts
    assert all("twemoji style" in prompt for prompt in prompts - {""})
    assert not any(re.search(rf"\b{name}\b", prompt) for prompt in prompts for name in NAMES)


def test_other_emoji_share_no_word_with_canvas() -> None:
    def entry(code: str, *names: str, category: str = "Objects") -> dict[str, object]:
        return {"unified": code, "name": names[0].upper(), "short_names": list(names[1:]), "category": category}

    entries = [
        entry("1F9F2", "magnet", "magnet"),
        entry("1F3F5-FE0F", "rosette", "rosette"),
        entry("1F415", "dog", "dog2"),
        entry("1F9AE", "guide animal", "guide_dog"),
        entry("1F52A", "hocho", "hocho"),
        entry("1F468-200D-1F373", "man cooking", "male-cook"),
        entry("1F600", "grinning face", "grinning", category="Smileys & Emotion"),
    ]
    assert [item.name for item in others.nameless_emoji(entries)] == ["magnet", "rosette"]


def test_other_emoji_are_pictures_without_an_object() -> None:
    sprites = torch.rand(12, len(STYLES), 4, 64, 64, generator=torch.Generator().manual_seed(0))
    taught, kept_out = others.split(sprites)
    assert torch.equal(kept_out, sprites[[5, 11]])
    assert len(taught) == 10
    batch = others.draw(taught, 7, torch.Generator().manual_seed(1))
    assert batch.images.shape == (7, 3, 64, 64)
    assert batch.objects.tolist() == [-1] * 7
    assert 0 <= batch.styles.min() <= batch.styles.max() < len(STYLES)


def test_a_third_of_the_hue_circle_turns_red_into_green() -> None:
    """R, G, B lie 120 degrees apart around the grey axis, so that turn permutes them; greys lie on the axis."""
    turn = hue_matrices(torch.tensor([2 * torch.pi / 3]), torch.ones(1))[0]
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    for angle, saturation in ((0.7, 1.3), (3.0, 0.0)):
        matrix = hue_matrices(torch.tensor([angle]), torch.tensor([saturation]))[0]
        torch.testing.assert_close(matrix @ torch.full((3,), 0.4), torch.full((3,), 0.4), atol=1e-6, rtol=0)
    washed_out = hue_matrices(torch.tensor([0.0]), torch.tensor([0.0]))[0] @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(washed_out, torch.full((3,), 0.299), atol=1e-6, rtol=0)


def test_harder_pictures_are_recoloured_within_the_sprite_and_stay_pictures() -> None:
    layers = torch.rand(16, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    layers[:, :3] *= layers[:, 3:]
    changed = recolour(layers, torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 3], layers[:, 3])
    assert (changed[:, :3] <= changed[:, 3:]).all()
    touched = (changed - layers).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert 2 < touched.sum() < 14
    images = place_harder(layers, torch.zeros(16, dtype=torch.long), torch.Generator().manual_seed(2))
    assert images.shape == (16, 3, 64, 64)
    assert -1 <= images.min() < images.max() <= 1


def test_a_stage_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def train(folder: Path, *, break_at: int | None = None) -> Tensor:
        model = nn.Linear(3, 1)
        with torch.no_grad():
            model.weight.fill_(0.1)
            model.bias.zero_()

        def loss(step: int, generator: torch.Generator) -> Tensor:
            if step == break_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=generator)
            return (model(x).squeeze(1) - x.sum(dim=1)).square().mean()

        run_stage("line", model, loss, steps=12, learning_rate=0.1, folder=folder, checkpoint_every=4)
        return model.weight.detach()

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", break_at=10)
    assert torch.equal(train(tmp_path / "broken"), whole)
