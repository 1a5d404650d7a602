"""Intervals, judges and metrics, against closed forms and slow references."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPModel, CLIPTokenizer

from colours import COLOURS, ColourJudge, coloured
from metaunlearn import canvas
from metaunlearn.canvas.build.tokenizer import build_tokenizer
from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.errors import UserError
from metaunlearn.metrics.clip_score import clip_score
from metaunlearn.metrics.concept import concept_score, default_choices, label_accuracy, see
from metaunlearn.metrics.fid import fid_score
from metaunlearn.metrics.intervals import bootstrap_mean, require_same_protocol, wilson
from metaunlearn.metrics.judge import ClassifierJudge, ClipJudge, canvas_phrase, load_judge, photo_of, weights_hash
from metaunlearn.metrics.preprocessing import Preprocessing, read_preprocessor
from tiny_judges import new_clip, save_classifier, save_clip

# --- intervals


def test_wilson_against_worked_numbers() -> None:
    """10 of 50, z = 1.96: centre (0.2 + 0.038416) / 1.076832 = 0.22140, half 1.96 sqrt(0.0032 + 0.000384) / 1.076832
    = 0.10898, so 11.24 to 33.04 %. 0 of 10: low 0, high z²/(n + z²) = 3.8415 / 13.8415 = 27.75 %."""
    some, none, every = wilson(10, 50), wilson(0, 10), wilson(10, 10)
    assert (some.value, some.n) == (20.0, 50)
    assert (some.low, some.high) == pytest.approx((11.24, 33.04), abs=0.005)
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, 27.75), abs=0.005)
    assert (every.value, every.low, every.high) == pytest.approx((100, 72.25, 100), abs=0.005)
    assert wilson(10, 50, confidence=0.5).high < some.high


def test_bootstrap_of_a_mean_has_the_width_of_its_standard_error() -> None:
    """400 values of standard deviation 1: the 95 % interval is about 2 x 1.96 / 20 = 0.196 wide."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interval = bootstrap_mean(values, torch.Generator().manual_seed(1), bounds=(-9, 9))
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(0.196 * float(values.std()), rel=0.1)
    assert interval == bootstrap_mean(values, torch.Generator().manual_seed(1), bounds=(-9, 9))
    one = bootstrap_mean(torch.tensor([3.0]), torch.Generator(), bounds=(0, 100))
    assert (one.low, one.value, one.high) == (0, 3, 100)


def test_no_score_from_no_data() -> None:
    empty = torch.zeros(0, 3, 4, 4)
    for attempt in (
        lambda: wilson(0, 0),
        lambda: bootstrap_mean(torch.zeros(0), torch.Generator(), bounds=(0, 1)),
        lambda: concept_score(ColourJudge(), empty, "red", ["blue"]),
        lambda: label_accuracy(ColourJudge(), empty, [], COLOURS),
        lambda: clip_score(ColourJudge(), empty, []),
        lambda: fid_score(ColourJudge(), empty, coloured("red", "red")),
        lambda: fid_score(ColourJudge(), coloured("red", "red"), coloured("red")),
    ):
        with pytest.raises(UserError, match="No score from no data"):
            attempt()


# --- concept


def test_concept_score_counts_what_the_judge_sees() -> None:
    images = coloured("red", "green", "blue", "blue")
    assert concept_score(ColourJudge(), images, "blue", ["red", "green"]).value == 50
    assert concept_score(ColourJudge(), images, "red", ["green", "blue"]).value == 25
    either = concept_score(ColourJudge(), images, "red | green", ["blue"])
    assert either.value == 50
    assert [row["saw"] for row in either.raw] == ["red | green", "red | green", "blue", "blue"]
    assert either.protocol["judge_weights"] == "0" * 64
    assert either.to_dict() == json.loads(json.dumps(either.to_dict()))
    assert set(either.to_dict()) == {"value", "low", "high", "n", "protocol"}


def test_label_accuracy_is_per_image() -> None:
    images = coloured("red", "green", "blue", "blue")
    score = label_accuracy(ColourJudge(), images, ["red", "green", "blue", "red"], COLOURS)
    assert (score.value, score.n) == (75, 4)
    assert score.raw[3] == {"saw": "blue", "label": "red"}


def test_choices_that_are_refused() -> None:
    images = coloured("red")
    with pytest.raises(UserError, match="--alternative"):
        concept_score(ColourJudge(), images, "red", [])
    with pytest.raises(UserError, match="stands twice"):
        concept_score(ColourJudge(), images, "red|green", ["green"])
    with pytest.raises(UserError, match="separated by"):
        concept_score(ColourJudge(), images, "red||green", ["blue"])
    with pytest.raises(UserError, match="Did you mean 'blue'"):
        label_accuracy(ColourJudge(), images, ["bleu"], COLOURS)
    with pytest.raises(UserError, match="label for each image"):
        label_accuracy(ColourJudge(), images, [], COLOURS)


def test_default_choices_come_from_the_vocabulary_that_knows_the_concept() -> None:
    assert default_choices(ColourJudge(), ["green"]) == ["green", "red", "blue"]
    assert default_choices(ColourJudge(), ["verdant|green"]) == ["verdant|green", "red", "blue"]
    assert default_choices(ColourJudge(), ["matt"]) == ["matt", "shiny"]
    with pytest.raises(UserError, match="--alternative"):
        default_choices(ColourJudge(), ["green", "matt"])


def test_scores_of_different_protocols_are_not_compared() -> None:
    images = coloured("red", "blue")
    one = concept_score(ColourJudge(), images, "red", ["blue"])
    require_same_protocol([one.stamped(seeds="0-1"), one.stamped(seeds="2-3")])
    with pytest.raises(UserError, match="choices"):
        require_same_protocol([one, concept_score(ColourJudge(), images, "red", ["blue", "green"])])
    with pytest.raises(UserError, match="steps: 20 and 50"):
        require_same_protocol([one.stamped(steps=20), one.stamped(steps=50)])


# --- judges


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    return new_clip(tokenizer)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_a_saved_clip_judges_as_the_one_in_memory(clip_folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    judge = load_judge(str(clip_folder), labels=["knife", "fork"])
    assert isinstance(judge, ClipJudge)
    assert judge.fingerprint == weights_hash(clip)
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ([0.5, 0.4, 0.3], [0.5, 0.25, 0.2]))
    tokens = tokenizer([f"a photo of a {label}" for label in NAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip(**tokens, pixel_values=(images - mean) / std).logits_per_image
    assert torch.equal(judge.classify(images, NAMES), logits.argmax(dim=1))


def test_batching_changes_nothing(clip: CLIPModel, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ClipJudge(clip, tokenizer, Preprocessing(resize=32, crop=(32, 32)), name="tiny")
    images = torch.rand(5, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    texts = ["a knife", "a very long text in many words about a rocket and a bus and a cat and a dog " * 3, ""]
    whole = judge.embed_images(images), judge.embed_texts(texts)
    monkeypatch.setattr("metaunlearn.metrics.judge.BATCH", 2)
    parts = judge.embed_images(images.clone()), judge.embed_texts(texts)
    for one, other in zip(whole, parts, strict=True):
        assert (one - other).abs().max() < 1e-6
    judge.embed_images(images)
    images[0] += 0.1
    assert (judge.embed_images(images)[0] - whole[0][0]).abs().max() > 1e-4, "changed in place, embedded again"
    images[0] -= 0.1
    assert not whole[0].requires_grad
    assert whole[0].shape == (5, 12)


def test_preprocessing_follows_pillow() -> None:
    """The reference is Pillow's bicubic resize of the shorter side, then the centre crop, to one 8-bit step."""
    from PIL import Image

    smooth = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(smooth, size=(48, 72), mode="bilinear").mul(255).round() / 255
    ours = Preprocessing(resize=20, crop=(16, 16))(image)[0]
    pillow = Image.fromarray((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    reference = pillow.resize((30, 20), Image.Resampling.BICUBIC).crop((7, 2, 23, 18))
    expected = torch.from_numpy(np.array(reference)).permute(2, 0, 1) / 255
    assert (ours - expected).abs().max() < 1.5 / 255


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"size": 224, "do_center_crop": True, "crop_size": 200, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]},
            Preprocessing(resize=224, crop=(200, 200)),
        ),
        (
            {"size": {"height": 8, "width": 9}, "resample": 2, "do_normalize": False},
            Preprocessing(resize=(8, 9), mode="bilinear"),
        ),
        ({"do_resize": False, "size": 224, "do_normalize": False}, Preprocessing(resize=None)),
    ],
)
def test_preprocessor_configurations(config: dict[str, object], expected: Preprocessing) -> None:
    assert Preprocessing.from_config(config) == expected


def test_a_preprocessor_within_a_processor_is_found(clip_folder: Path, tmp_path: Path) -> None:
    assert read_preprocessor(tmp_path) is None
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": {"shortest_edge": 7}}}')
    assert read_preprocessor(tmp_path) == {"size": {"shortest_edge": 7}}


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ViT with eleven labels, so that label order by number and by text differ."""
    return save_classifier(tmp_path_factory.mktemp("classifier"), [f"thing {index}" for index in range(11)])


def test_classifier_sees_its_own_labels_only(classifier_folder: Path) -> None:
    judge = load_judge(str(classifier_folder))
    assert isinstance(judge, ClassifierJudge)
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ([0.5, 0.4, 0.3], [0.5, 0.25, 0.2]))
    with torch.no_grad():
        logits = judge.model((images - mean) / std).logits
    assert torch.equal(judge.classify(images, judge.labels), logits.argmax(dim=1))
    assert torch.equal(judge.classify(images, ["thing 10", "thing 2"]), logits[:, [10, 2]].argmax(dim=1))
    assert default_choices(judge, ["thing 3"]) == ["thing 3", *(f"thing {i}" for i in range(11) if i != 3)]
    load_judge(str(classifier_folder), labels=["thing 1 | thing 2", "thing 3"])
    with pytest.raises(UserError, match="Did you mean 'thing 1'"):
        load_judge(str(classifier_folder), labels=["thing 2|thingy 1"])
    for attempt in (lambda: judge.embed_images(images), lambda: judge.embed_texts(["a"])):
        with pytest.raises(UserError, match="is a classifier"):
            attempt()


def test_two_classes_of_one_label_are_one_label(tmp_path: Path) -> None:
    """ImageNet has a crane that flies and one that lifts; whichever is the likelier one speaks for both."""
    judge = load_judge(str(save_classifier(tmp_path / "two", ["crane", "heron", "crane"])))
    assert default_choices(judge, ["heron"]) == ["heron", "crane"]
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    with torch.no_grad():
        logits = judge.model(judge.preprocessing(images)).logits
    logits = logits - logits.mean(dim=0)
    judge.model.classifier.bias.data -= judge.model(judge.preprocessing(images)).logits.mean(dim=0)
    expected = ["heron" if row.argmax() == 1 else "crane" for row in logits]
    assert {*logits.argmax(dim=1).tolist()} == {0, 1, 2}
    assert see(judge, images, ["crane", "heron"]) == expected


def test_a_label_keeps_its_article() -> None:
    assert [photo_of(label) for label in ("gun", "a gun", "an axe", "The Joker", "another")] == [
        "a photo of a gun", "a photo of a gun", "a photo of an axe", "a photo of The Joker", "a photo of a another",
    ]  # fmt: skip


def test_canvas_judge_words_its_labels(
    clip: CLIPModel, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvas, "load_judge", lambda: (clip, SimpleNamespace(tokenizer=tokenizer)))
    judge = load_judge("canvas")
    assert judge.preprocessing == Preprocessing(resize=32, crop=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    asked = ("axe", "an axe", "The Axe", "scissors", "noto")
    assert [canvas_phrase(label) for label in asked] == ["an axe", "an axe", "an axe", "scissors", "noto style"]
    assert default_choices(judge, ["a knife"]) == ["a knife", *(name for name in NAMES if name != "knife")]
    assert default_choices(judge, ["knife"]) == ["knife", *(name for name in NAMES if name != "knife")]
    assert default_choices(judge, ["twemoji"]) == ["twemoji", *(name for name in STYLES if name != "twemoji")]


def test_judges_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="does not exist"):
        load_judge(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(UserError, match=r"is a bert model \(BertModel\)"):
        load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        load_judge(str(tmp_path))


def test_weights_hash_sees_values_and_names() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)
    with torch.no_grad():
        other.bias[0] += 1e-3
    assert weights_hash(one) != weights_hash(other)
    assert weights_hash(one) != weights_hash(nn.Sequential(one))
