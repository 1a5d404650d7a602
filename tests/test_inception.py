"""FID on Inception's features: the network beside the packages' own figures, scaling, conversion, evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from colours import COLOURS, ColourJudge
from conftest import Call
from inception_weights import pictures, save_published, shapes, weights
from metaunlearn.checkpoint import save_tensors
from metaunlearn.converting import convert
from metaunlearn.data.imagefolder import list_entries, read_whole, write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import UserError
from metaunlearn.evaluation import evaluate, plan
from metaunlearn.metrics.default_judge import NoJudge
from metaunlearn.metrics.fid import frechet_distance
from metaunlearn.metrics.inception import NETWORK, WAYS, Inception, trunk
from metaunlearn.metrics.inception_network import (
    HALVING_TO_8,
    INPUT,
    POOL,
    SPREAD,
    Block,
    FidInception,
    FixedNorm,
    Step,
)
from metaunlearn.metrics.intervals import require_same_protocol
from metaunlearn.metrics.kept import read_kept
from metaunlearn.metrics.kid import kernel_distance
from metaunlearn.metrics.registry import metrics_named
from tiny_judges import head_tensors

WEIGHTS, PARAMETERS = 470, 21_785_568
LISTING = "ede413a9e608b43dfe69ec1fd0e622d00b390a1c70aeb75aba6cafeaad6426d2"
"""SHA-256 of all names and shapes that torch-fidelity 0.4.0 loads the published file into, fc and counters left out."""


@pytest.fixture(scope="module", name="shapes")
def shapes_() -> dict[str, tuple[int, ...]]:
    return shapes()


@pytest.fixture(scope="module")
def numbers(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return weights(shapes)


@pytest.fixture(scope="module")
def published(numbers: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """It is large, so it does not stay."""
    file = save_published(tmp_path_factory.mktemp("published") / "inception.pth", numbers)
    yield file
    file.unlink()


@pytest.fixture(scope="module")
def converted(published: Path) -> Iterator[Path]:
    file = published.with_suffix(".safetensors")
    assert convert("inception-fid", published, file, published=False)["tensors"] == WEIGHTS
    yield file
    file.unlink()


# --- the network


def test_names_and_shapes_are_those_of_the_published_weights(shapes: dict[str, tuple[int, ...]]) -> None:
    listing = "\n".join(f"{name} {shape}" for name, shape in shapes.items())
    assert (len(shapes), hashlib.sha256(listing.encode()).hexdigest()) == (WEIGHTS, LISTING)
    with torch.device("meta"):
        assert sum(p.numel() for p in FidInception().parameters()) == PARAMETERS
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)


@pytest.mark.parametrize(
    ("way", "mean", "features"),
    [
        ("clean-fid", 6.042144, [9.81633, 3.20269, 1.58588, 1.83699]),
        ("pytorch-fid", 5.062073, [8.35592, 2.63101, 1.14143, 1.49641]),
        ("torch-fidelity", 5.064013, [8.44413, 2.55987, 1.17567, 1.5288]),
    ],
)
def test_features_are_those_of_the_packages(converted: Path, way: str, mean: float, features: list[float]) -> None:
    """Recorded from the packages' own networks and resizes (torch-fidelity 0.4.0, pytorch-fid 0.3.0, clean-fid 0.1.35)
    on the same weights and pictures: the mean of all, and some of the second picture's."""
    found = Inception.load(converted, way).embed_images(pictures(2, 96, 64))
    assert (found.shape, found.dtype) == ((2, 2048), torch.float32)
    assert float(found.mean()) == pytest.approx(mean, rel=1e-4)
    assert found[1, [0, 400, 900, 1700]].tolist() == pytest.approx(features, rel=1e-3)


def test_pictures_of_several_sizes_are_independent_of_one_another(converted: Path) -> None:
    state = torch.get_rng_state()
    inception = Inception.load(converted)
    assert torch.equal(torch.get_rng_state(), state), "loading drew random numbers"
    one, other = pictures(1, 40, 70)[0], pictures(1, 299, 299)[0]
    both = inception.embed_images([one, other])
    assert torch.allclose(both[1:], inception.embed_images(other[None]), atol=1e-4)
    assert inception.embed_images([]).shape == (0, 2048)


def test_the_normalisation_by_hand() -> None:
    """(3 - 1) / √(0.999 + 0.001) · 5 - 4 = 6."""
    norm = FixedNorm(1)
    for name, value in {"weight": 5.0, "bias": -4.0, "running_mean": 1.0, "running_var": 0.999}.items():
        norm.state_dict()[name].fill_(value)
    assert float(norm.train()(torch.full((1, 1, 1, 1), 3.0)).detach()) == pytest.approx(6, abs=1e-6)


def identity(block: Block) -> Block:
    """Its convolutions pass on what is at their centre."""
    for layer in block.children():
        kernel = layer.conv.weight.data
        kernel.zero_()[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = torch.eye(*kernel.shape[:2])
    return block


def test_pooling_by_hand() -> None:
    """Of 0..8 in a square: the corner's average over its 4 pixels 0, 1, 3, 4 is 2, the middle's over 9 is 4; the
    maximum at the corner is 4. With stride 2 the only maximum is 8 and a 3 x 3 convolution has one place, at 4."""
    square = torch.arange(9.0).view(1, 1, 3, 3)
    plan = {"pooled": Step(POOL, 1)}
    with torch.no_grad():
        average, largest = (identity(Block(1, plan, maximum=maximum))(square)[0, 0] for maximum in (False, True))
        halved = identity(Block(1, {"conv": Step(INPUT, 1, (3, 3))}, halves=True))(square)
    factor = (1 + 1e-3) ** -0.5
    assert (average[0, 0].item(), average[1, 1].item()) == pytest.approx((2 * factor, 4 * factor))
    assert largest[0, 0].item() == pytest.approx(4 * factor)
    assert halved.flatten().tolist() == pytest.approx([4 * factor, 8])


def test_branches_are_joined_in_order() -> None:
    """With nothing but a bias each branch's last step is its own constant; what others take is not joined."""
    block = Block(4, SPREAD, maximum=True)
    for number, layer in enumerate(block.children()):
        layer.conv.weight.data.zero_()
        layer.bn.bias.data.fill_(number)
    with torch.no_grad():
        runs = torch.unique_consecutive(block(torch.zeros(1, 4, 2, 2))[0, :, 0, 0], return_counts=True)
    assert [values.tolist() for values in runs] == [[0, 2, 3, 6, 7, 8], [320, 384, 384, 384, 384, 192]]
    assert Block(4, HALVING_TO_8, halves=True).joined == ["branch3x3_2", "branch7x7x3_4", POOL]


# --- ways of scaling


def test_a_picture_of_the_network_s_own_size_is_only_shifted() -> None:
    picture = pictures(1, 299, 299)[0] * 255
    expected = {"clean-fid": (picture - 128) / 128, "pytorch-fid": picture / 127.5 - 1,
                "torch-fidelity": (picture - 128) / 128}  # fmt: skip
    assert list(WAYS) == list(expected)
    for way, scaling in WAYS.items():
        assert torch.allclose(scaling.prepare(picture), expected[way], atol=1e-6), way


def test_halving_by_hand() -> None:
    """From 598 pixels: TensorFlow takes every other one, torch the mean of each four, Pillow looks further, and does
    not leave the range."""
    picture = pictures(1, 598, 598)[0] * 255
    fours = picture.unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(3, 4))
    assert torch.allclose(WAYS["torch-fidelity"].prepare(picture), (picture[:, ::2, ::2] - 128) / 128, atol=1e-5)
    assert torch.allclose(WAYS["pytorch-fid"].prepare(picture), fours / 127.5 - 1, atol=1e-5)
    clean = WAYS["clean-fid"].prepare(picture)
    antialiased = torch.nn.functional.interpolate(picture[None], (299, 299), mode="bicubic", antialias=True)[0]
    assert torch.allclose(clean, (antialiased.clamp(0, 255) - 128) / 128, atol=1e-4)
    edge = torch.zeros(3, 40, 40)
    edge[:, :, 20:] = 255
    assert (WAYS["clean-fid"].prepare(edge).min(), WAYS["clean-fid"].prepare(edge).max()) == (-1, 127 / 128)


# --- conversion


def test_convert_on_the_command_line(published: Path, numbers: dict[str, Tensor], tmp_path: Path, call: Call) -> None:
    out = tmp_path / "inception.safetensors"
    outcome = call("convert", "inception-fid", published, "--out", out, "--own", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["metrics"] == f"fid:{out}"
    state = Inception.load(out).network.state_dict()
    assert list(state) == list(numbers)
    assert all(torch.equal(state[name], numbers[name]) for name in numbers)
    out.unlink()


def test_other_weights_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    whole = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    first = "Conv2d_1a_3x3.conv.weight"
    for change, told in (
        ({first: None}, rf"lacks {first} and has beside nothing"),
        ({"AuxLogits.fc.bias": torch.zeros(1)}, r"lacks nothing and has beside AuxLogits.fc.bias.*pytorch-fid's"),
        ({"fc.weight": torch.zeros(1000, 1)}, r"1000 classes, that of FID's network 1008.*torchvision"),
        ({first: torch.zeros(32, 3, 5, 5)}, rf"{first} has the shape \(32, 3, 5, 5\), not \(32, 3, 3, 3\)"),
    ):
        changed = {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}
        with pytest.raises(UserError, match=told):
            trunk(changed, "a.pth")
    with pytest.raises(UserError, match=r"lacks Conv2d_1a_3x3.bn.bias, .* and 467 more"):
        trunk({}, "a.pth")
    assert list(trunk({**whole, "fc.weight": torch.zeros(1008, 1)}, "a.pth")) == list(shapes)


def test_what_is_no_pickle_is_told_without_another_publisher_s_name(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as weights alone") as told:
        convert("inception-fid", tmp_path / "junk.pth", tmp_path / "inception.safetensors", published=False)
    assert "LAION" not in str(told.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    junk, head, bare = (tmp_path / f"{name}.safetensors" for name in ("junk", "head", "bare"))
    junk.write_bytes(b"nonsense")
    save_tensors(head, head_tensors(), {"head": "laion-nsfw-l14"})
    save_tensors(bare, head_tensors(), {NETWORK: "inception-fid"})
    for file, told in (
        (junk, "cannot be read"),
        (head, "something else.*metaunlearn convert inception-fid"),
        (bare, "is no inception-fid"),
    ):
        with pytest.raises(UserError, match=told):
            Inception.load(file)


def test_what_stands_behind_the_colon(tmp_path: Path) -> None:
    file = tmp_path / "a@b.safetensors"
    file.touch()
    assert list(metrics_named([f"fid:{file}", f"fid:{file}@pytorch-fid", "fid", f"kid:{file}@torch-fidelity"])) == [
        "fid:clean-fid", "fid:pytorch-fid", "fid", "kid:torch-fidelity",
    ]  # fmt: skip
    for metrics, told in (
        ([f"fid:{file}@clean_fid"], "Did you mean 'clean-fid'"),
        (["fid:none.safetensors"], r"no .safetensors file here.*curl -L .* && metaunlearn convert inception-fid pt_"),
        (["kid:inception.pth@clean-fid"], r"kid:FILE\) are no .safetensors file"),
        ([f"fid:{file}", f"fid:{file}@clean-fid"], "another score 'fid:clean-fid'"),
    ):
        with pytest.raises(UserError, match=told):
            metrics_named(metrics)


# --- in an evaluation


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake one: noise in the colour that the prompt names."""

    def paint(pipeline: object, prompts: Any, seeds: Any, **options: Any) -> Tensor:
        images = torch.stack([torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        for image, prompt in zip(images, prompts, strict=True):
            image[COLOURS.index(prompt)] = 1
        return images

    monkeypatch.setattr("metaunlearn.draws.generate_images", paint)
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=6))
    return SimpleNamespace(config={}, unet=unet, vae_scale_factor=4)


def test_fid_of_inception_and_of_the_judge_side_by_side(
    pipeline: SimpleNamespace, converted: Path, tmp_path: Path
) -> None:
    """Reference pictures are taken whole, the generated ones as their files have them; scores of two ways differ and
    do not go together."""
    real = tmp_path / "real"
    real.mkdir()
    for index, (height, width) in enumerate([(20, 50), (30, 10)]):
        pixels = (pictures(1, height, width)[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(real / f"{index}.png")
    metrics = ["fid", f"fid:{converted}", f"kid:{converted}", f"fid:{converted}@pytorch-fid"]
    call: dict[str, Any] = {"judge": ColourJudge(), "reference": real}
    prompts = [Prompt("red"), Prompt("blue")]
    scores = evaluate(pipeline, prompts, metrics=metrics, out=tmp_path / "out", **call)
    assert list(json.loads((tmp_path / "out/results.json").read_text())) == list(scores)
    assert list(scores) == ["fid", "fid:clean-fid", "kid:clean-fid", "fid:pytorch-fid"]

    inception = Inception.load(converted)
    made, compared = (
        inception.embed_images(read_whole(entry.file).float() / 255 for entry in list_entries(folder, default_text=""))
        for folder in (tmp_path / "out/images", real)
    )
    assert scores["fid:clean-fid"].value == pytest.approx(frechet_distance(made, compared), rel=1e-5)
    assert scores["kid:clean-fid"].value == pytest.approx(kernel_distance(made.double(), compared.double()), rel=1e-5)
    protocol = scores["fid:clean-fid"].protocol
    assert (protocol["judge_weights"], protocol["feature_dim"]) == (inception.fingerprint, 2048)
    assert protocol["resize"].startswith("clean-fid: Pillow's bicubic")
    assert (protocol["n"], protocol["n_reference"], protocol["reference"]) == (
        2,
        2,
        scores["fid"].protocol["reference"],
    )
    assert scores["fid"].protocol["judge"] == "colours"
    for other in ("fid", "fid:pytorch-fid"):
        assert scores[other].value != pytest.approx(scores["fid:clean-fid"].value, rel=1e-3)
        with pytest.raises(UserError, match="resize"):
            require_same_protocol([scores["fid:clean-fid"], scores[other]])


def test_features_of_both_kinds_are_kept_for_a_run_that_goes_on(
    pipeline: SimpleNamespace, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_imagefolder(tmp_path / "real", pictures(2, 24, 24), ["x", "x"])
    metrics = ["fid", f"fid:{converted}"]
    evaluation = plan(
        pipeline, [Prompt("red"), Prompt("blue")], metrics=metrics, judge=ColourJudge(), reference=tmp_path / "real"
    )
    first = evaluation.run(pipeline, kept=tmp_path / "kept")
    part = read_kept(tmp_path / "kept", 0)
    assert part is not None
    found = {name: tuple(features.shape) for name, features in part.features.items()}
    assert found == {"judge": (2, 3), str(converted): (2, 2048)}
    monkeypatch.setattr("metaunlearn.draws.generate_images", None)
    assert evaluation.run(pipeline, kept=tmp_path / "kept") == first


def test_distances_of_inception_do_not_depend_on_the_batches(
    pipeline: SimpleNamespace, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures drawn and taken through the network one by one, and together."""
    write_imagefolder(tmp_path / "real", pictures(2, 24, 24), ["x", "x"])
    found = []
    for size in (1, 32):
        monkeypatch.setattr("metaunlearn.generation.BATCH", size)
        monkeypatch.setattr("metaunlearn.metrics.inception.BATCH", size)
        found.append(
            evaluate(
                pipeline, [Prompt("red"), Prompt("blue")], metrics=[f"fid:{converted}", f"kid:{converted}"],
                judge=NoJudge(), reference=tmp_path / "real",
            )
        )  # fmt: skip
    assert list(found[0]) == ["fid:clean-fid", "kid:clean-fid"]
    for name, score in found[0].items():
        other = found[1][name]
        assert (other.value, other.low, other.high) == pytest.approx((score.value, score.low, score.high), rel=1e-4)


def test_pictures_that_are_there_already_need_no_judge(
    pipeline: SimpleNamespace, converted: Path, tmp_path: Path, call: Call
) -> None:
    """Neither those of a folder nor those of a model; the figures are the same, and KID of the judge is refused."""
    write_imagefolder(tmp_path / "real", pictures(3, 24, 24), ["x"] * 3)
    metric = f"kid:{converted}@torch-fidelity"
    drawn = evaluate(
        pipeline, [Prompt("red"), Prompt("blue")],
        metrics=[metric], judge=NoJudge(), reference=tmp_path / "real", out=tmp_path / "model",
    )  # fmt: skip
    made = ["evaluate", "--pictures", tmp_path / "model/images", "--reference", tmp_path / "real", "--json"]
    outcome = call(*made, "--metrics", metric, "--out", tmp_path / "pictures")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["results"]
    assert list(found) == list(drawn) == ["kid:torch-fidelity"]
    assert found["kid:torch-fidelity"]["value"] == drawn["kid:torch-fidelity"].value
    protocol = found["kid:torch-fidelity"]["protocol"]
    assert protocol["judge"] == converted.name
    asked = json.loads((tmp_path / "pictures" / "run.json").read_text())["request"]
    assert asked["kid_weights"] == protocol["judge_weights"], "it is resumed with these only"
    refused = call(*made, "--metrics", "kid", "--out", tmp_path / "of-judge")
    assert (refused.code, "needs a judge" in refused.err) == (2, True)
    (tmp_path / "one").mkdir()
    (tmp_path / "model/images/000000.png").rename(tmp_path / "one/a.png")
    refused = call(
        "evaluate", "--pictures", tmp_path / "one", "--reference", tmp_path / "real", "--metrics", metric,
        "--out", tmp_path / "few",
    )  # fmt: skip
    assert (refused.code, "KID needs at least 2 images" in " ".join(refused.err.split())) == (2, True)


def test_without_a_reference_or_enough_pictures_it_is_refused(
    pipeline: SimpleNamespace, converted: Path, tmp_path: Path
) -> None:
    call: dict[str, Any] = {"metrics": [f"fid:{converted}"], "judge": ColourJudge()}
    with pytest.raises(UserError, match=r"needs real images.*--reference DIR"):
        evaluate(pipeline, [Prompt("red")], **call)
    write_imagefolder(tmp_path / "real", pictures(2, 24, 24), ["x", "x"])
    with pytest.raises(UserError, match="FID needs at least 2 images"):
        evaluate(pipeline, [Prompt("red")], reference=tmp_path / "real", **call)
    (tmp_path / "real/000001.png").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"000001\.png cannot be decoded"):
        evaluate(pipeline, [Prompt("red"), Prompt("blue")], reference=tmp_path / "real", **call)
