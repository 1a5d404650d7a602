"""Canvas as it ships: its catalog, its pictures, its weights, what it draws and how its judge sees."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from metaunlearn import canvas
from metaunlearn.canvas import scenes
from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.canvas.catalog import BACKGROUNDS, NAMES, STYLES, TASKS, UNSEEN_PAIRS, caption, related_to
from metaunlearn.canvas.datasets import clean, hrm_m, hrm_s
from metaunlearn.canvas.tasks import task_for, with_styles
from metaunlearn.errors import UserError
from metaunlearn.generation import generate_images
from metaunlearn.metrics.concept import label_accuracy
from metaunlearn.metrics.judge import load_judge


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return canvas.load_pipeline()


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of transformers would, which looks for them under other names."""
    shutil.copytree(canvas.weights_folder() / "pipeline", tmp_path / "pipeline")
    file = tmp_path / "pipeline" / "text_encoder" / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    monkeypatch.setattr(canvas, "weights_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="the weights of its text_encoder lack"):
        canvas.load_pipeline()


def test_captions() -> None:
    assert caption("alien monster", "noto", "grey") == "an alien monster in noto style on a grey background"
    assert caption("scissors") == "scissors"
    assert "fork and knife" in related_to("knife")
    assert "knife" not in related_to("knife")


def test_every_caption_fits_and_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for name in NAMES:
        text = f"a picture of {caption(name, 'openmoji', 'yellow')}"
        pieces = tokenizer.tokenize(text)
        assert len(pieces) + 2 <= tokenizer.model_max_length
        assert "".join(pieces) == text.replace(" ", "</w>").replace("-", "</w>-</w>") + "</w>"


def test_erasure_tasks_are_trained_whole() -> None:
    assert len(UNSEEN_PAIRS) >= 10
    for name, style in UNSEEN_PAIRS:
        assert name not in TASKS.values()
        assert style in STYLES
    trained = {tuple(pair) for pair in scenes.trained_pairs().tolist()}
    assert len(trained) == len(NAMES) * len(STYLES) - len(UNSEEN_PAIRS)
    assert not trained & {(NAMES.index(name), STYLES.index(style)) for name, style in UNSEEN_PAIRS}


def test_pairs_that_were_never_trained_are_those_of_the_shipped_weights() -> None:
    """Every fifth object from the third on, the styles in turn; the tasks' own objects are kept whole."""
    assert len(UNSEEN_PAIRS) == 13
    assert {("scissors", "noto"), ("saw", "twemoji"), ("ghost", "fluent"), ("dog", "openmoji")} <= UNSEEN_PAIRS


def test_a_sprite_is_premultiplied() -> None:
    sprite = scenes.to_sprite(Image.new("RGBA", (2, 2), (255, 51, 0, 102)))
    assert sprite[:, 0, 0].tolist() == pytest.approx([0.4, 0.08, 0.0, 0.4])


def test_scenes_depend_on_their_generator_only() -> None:
    one, two = (scenes.draw(scenes.all_pairs(), 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert one.images.shape == (5, 3, 64, 64)
    assert one.images.abs().max() <= 1
    assert len(BACKGROUNDS) > one.backgrounds.max()


def test_attackers_pictures_show_the_concept_and_clean_ones_do_not() -> None:
    judge, generator = load_judge("canvas"), torch.Generator().manual_seed(0)
    for make in (hrm_s, hrm_m):
        images, texts = make("knife", 40, generator)
        assert all("knife" in text for text in texts)
        assert label_accuracy(judge, images, ["knife"] * 40, NAMES).value >= 95
    images, texts = clean("knife", 40, generator)
    named = {name for name in NAMES for text in texts if name in text}
    assert not named & {"knife", *related_to("knife")}
    assert label_accuracy(judge, images, ["knife"] * 40, NAMES).value == 0


def test_clean_pictures_are_of_five_objects() -> None:
    _, texts = clean("knife", 150, torch.Generator().manual_seed(0))
    assert len({text.partition(" in ")[0] for text in texts}) == 5


def test_a_styles_one_prompt_names_the_style() -> None:
    assert hrm_s("openmoji", 1, torch.Generator().manual_seed(0))[1] == ["openmoji style"]


@pytest.mark.parametrize("concept", ["knife", "clown", "openmoji"])
def test_tasks_never_mix_roles(concept: str) -> None:
    task = task_for(concept)
    assert concept in task.choices
    assert all(concept in prompt for prompt in task.concept_prompts)
    assert concept not in {item.label for item in (*task.related, *task.unrelated)}
    assert not {item.label for item in task.related} & {item.label for item in task.unrelated}


def test_any_beginning_of_the_prompts_is_a_mixture_of_styles() -> None:
    assert [item.prompt for item in with_styles(["cat", "dog", "fox"])[:4]] == [
        "a cat", "a dog in noto style", "a fox in twemoji style", "a cat in noto style",
    ]  # fmt: skip


def test_prompts_of_unrelated_objects_name_no_style_where_one_is_erased() -> None:
    assert not [item.prompt for item in task_for("openmoji").unrelated if "style" in item.prompt]


def test_weights_are_what_their_checksums_say_and_small() -> None:
    folder = canvas.weights_folder()
    sums = json.loads((folder / "checksums.json").read_text())
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.safetensors")}
    assert files.keys() == sums.keys()
    for name, file in files.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sums[name]
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 25e6


def test_weights_name_no_folder_of_the_machine_that_made_them() -> None:
    for config in canvas.weights_folder().rglob("*.json"):
        assert not json.loads(config.read_text()).get("_name_or_path")


def test_sources_are_recorded_for_every_sprite() -> None:
    art = canvas.weights_folder().parent / "art"
    sources = json.loads((art / "sources.json").read_text())
    assert set(sources) == set(STYLES)
    for style in STYLES:
        assert set(sources[style]["pictures"]) == set(NAMES)
        assert {file.stem for file in (art / style).glob("*.png")} == set(NAMES)


def test_it_is_a_real_stable_diffusion(pipeline: StableDiffusionPipeline) -> None:
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.unet, UNet2DConditionModel)
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}


def test_judge_sees_real_pictures() -> None:
    """At least 98 % of unseen augmentations; 512 pictures at a true 99.3 % fall below 97.5 % once in 100,000."""
    batch = scenes.draw(scenes.all_pairs(), 512, torch.Generator().manual_seed(123_456))
    judge, images = load_judge("canvas"), (batch.images + 1) / 2
    assert label_accuracy(judge, images, [NAMES[i] for i in batch.objects], NAMES).value >= 97.5
    assert label_accuracy(judge, images, [STYLES[i] for i in batch.styles], STYLES).value >= 97.5


def test_it_draws_what_it_is_asked_for(pipeline: StableDiffusionPipeline) -> None:
    """64 objects, each once, styles in turn: docs/canvas.md has the figures of all pairs (95.7 and 97.3 %)."""
    wanted = [(name, STYLES[i % 4]) for i, name in enumerate(NAMES)]
    images = generate_images(pipeline, [caption(name, style) for name, style in wanted], list(range(len(wanted))))
    judge = load_judge("canvas")
    assert label_accuracy(judge, images, [name for name, _ in wanted], NAMES).value >= 85
    assert label_accuracy(judge, images, [style for _, style in wanted], STYLES).value >= 85


def test_a_picture_depends_on_its_prompt_and_seed_only(pipeline: StableDiffusionPipeline) -> None:
    alone = generate_images(pipeline, ["a cat"], [7])
    among = generate_images(pipeline, ["a dog", "a cat", "a bus"], [6, 7, 8])
    torch.testing.assert_close(alone[0], among[1], atol=2e-3, rtol=0)
