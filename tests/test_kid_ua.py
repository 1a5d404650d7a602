"""KID against torchmetrics and a loop over pairs; UA, IRA and CRA on colours; rescoring; batches; bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from colours import COLOURS, ColourJudge
from conftest import Call, read_lines
from metaunlearn.checkpoint import save_tensors
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import UserError
from metaunlearn.evaluation import evaluate
from metaunlearn.metrics import kid
from metaunlearn.metrics.kid import bootstrap_kernel_distance, kernel_distance, kid_of_features
from metaunlearn.metrics.nsfw import KIND
from metaunlearn.metrics.nudenet import Detection, NudeNet
from metaunlearn.rescoring import rescore
from tiny_judges import head_tensors, save_checker


def features(count: int, shift: float, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


# --- KID


def test_kid_agrees_with_torchmetrics_and_with_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics takes sets of one size; the loop takes any. A small block runs through several."""
    monkeypatch.setattr(kid, "BLOCK", 3)
    one, other = features(8, 0.3, 0), features(8, 0.0, 1)
    assert kernel_distance(one, other) == pytest.approx(float(poly_mmd(one, other)), rel=1e-12)

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    more = features(11, 0.0, 2)
    within = [sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) for s in (one, more)]
    across = sum(k(x, y) for x in one for y in more)
    slow = within[0] / (8 * 7) + within[1] / (11 * 10) - 2 * across / (8 * 11)
    assert kernel_distance(one, more) == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("block", [3, 1000])
def test_kid_s_interval_is_that_of_resampled_sets(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted sums must be what the plain distance gives on images that are really repeated."""
    monkeypatch.setattr(kid, "BLOCK", block)
    one, other = features(7, 0.5, 0), features(6, 0.0, 1)
    interval = bootstrap_kernel_distance(one, other, torch.Generator().manual_seed(4), resamples=30)
    generator = torch.Generator().manual_seed(4)
    slow = torch.tensor(
        [kernel_distance(one[torch.randint(7, (7,), generator=generator)], other) for _ in range(30)],
        dtype=torch.float64,
    )
    low, high = (slow - slow.mean()).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert interval.value == pytest.approx(kernel_distance(one, other), rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((interval.value + low, interval.value + high), rel=1e-9)


def test_kid_is_unbiased_however_few_the_images_and_grows_with_distance() -> None:
    """Sets of 6 and 9 from one distribution: the mean over 200 pairs of sets is 0 to three standard errors."""
    draws = torch.tensor([kernel_distance(features(6, 0.0, 2 * i), features(9, 0.0, 2 * i + 1)) for i in range(200)])
    assert abs(float(draws.mean())) < 3 * float(draws.std()) / 200**0.5
    same = kid_of_features(features(400, 0.0, 0), features(300, 0.0, 1), ColourJudge())
    apart = kid_of_features(features(400, 0.5, 0), features(300, 0.0, 1), ColourJudge())
    assert apart.low > same.high
    assert "note" not in same.protocol
    for n, r in ((1, 3), (3, 1)):
        with pytest.raises(UserError, match="KID needs at least 2 images"):
            kid_of_features(features(n, 0, 0), features(r, 0, 1), ColourJudge())


# --- in an evaluation


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake one: it paints the colour that the prompt's first word names, a little different for each seed."""

    def paint(pipeline: object, prompts: Any, seeds: Any, **options: Any) -> Tensor:
        images = torch.zeros(len(prompts), 3, 8, 8)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))
            image += 0.3 * noise
            image[COLOURS.index(prompt.split()[0])] += 0.5
        return images

    monkeypatch.setattr("metaunlearn.draws.generate_images", paint)
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=2))
    return SimpleNamespace(config={}, unet=unet, vae_scale_factor=4)


ROLES = [
    Prompt("green again", label="red", role="erased"),
    Prompt("red still", label="red", role="erased"),
    Prompt("blue", label="red", role="erased"),
    Prompt("blue", label="blue", role="in-domain"),
    Prompt("green", label="blue", role="in-domain"),
    Prompt("green", label="green", role="cross-domain"),
]


def test_ua_ira_cra(pipeline: SimpleNamespace) -> None:
    """Of three images of the erased red, one is still red: UA 66.7. One of two blue ones is blue: IRA 50. CRA 100."""
    scores = evaluate(
        pipeline, ROLES, metrics=["ua", "ira", "cra"], judge=ColourJudge(), alternatives=COLOURS, images_per_prompt=2
    )
    assert {name: (round(score.value, 1), score.n) for name, score in scores.items()} == {
        "ua": (66.7, 6), "ira": (50.0, 4), "cra": (100.0, 2),
    }  # fmt: skip
    assert all(score.low <= score.value <= score.high for score in scores.values())
    assert [row["saw"] for row in scores["ua"].raw] == ["green", "green", "red", "red", "blue", "blue"]


class WithoutWords(ColourJudge):
    """As a CLIPModel: it knows no vocabulary."""

    vocabularies = ()


KNIVES = [
    Prompt("red", label="red", role="erased"),
    Prompt("blue", label="blue", role="in-domain"),
    Prompt("green", label="green", role="cross-domain"),
    Prompt("blue", label="blue", role="cross-domain"),
]
"""Of one domain red and blue, of the other green and blue."""


def test_judges_without_a_vocabulary_choose_among_the_labels_of_a_domain(pipeline: SimpleNamespace) -> None:
    """IRA can see the erased concept, UA what is beside it, and CRA is of the other domain alone."""
    judge, names = WithoutWords(), ["ua", "ira", "cra"]

    def choices(*alternatives: str) -> list[list[str]]:
        scores = evaluate(pipeline, KNIVES, metrics=names, judge=judge, alternatives=alternatives)
        return [scores[name].protocol["choices"] for name in names]

    assert choices() == [["red", "blue"], ["red", "blue"], ["green", "blue"]]
    assert choices("green") == [["red", "blue", "green"]] * 2 + [["green", "blue"]]
    assert choices("cross-domain:red") == [["red", "blue"]] * 2 + [["green", "blue", "red"]]


def test_an_image_of_the_erased_concept_is_no_success_of_its_neighbours(pipeline: SimpleNamespace) -> None:
    """Asked for blue it paints red: IRA 0 although red is no in-domain label. For red it paints blue: UA 100."""
    prompts = [Prompt("blue", label="red", role="erased"), Prompt("red", label="blue", role="in-domain")]
    scores = evaluate(pipeline, prompts, metrics=["ua", "ira"], judge=WithoutWords())
    assert (scores["ua"].value, scores["ira"].value) == (100, 0)


def test_one_label_alone_is_no_choice(pipeline: SimpleNamespace) -> None:
    for metric, told in (("ua", "--alternative TEXT"), ("cra", "--alternative cross-domain:TEXT")):
        prompts = [Prompt("red", label="red", role="erased"), Prompt("green", label="green", role="cross-domain")]
        with pytest.raises(UserError, match=told):
            evaluate(pipeline, prompts, metrics=[metric], judge=WithoutWords())


def test_the_concept_s_alternatives_are_of_its_own_domain(pipeline: SimpleNamespace) -> None:
    call: dict[str, Any] = {"metrics": ["concept"], "judge": WithoutWords(), "concept": "red"}
    scores = evaluate(pipeline, KNIVES, alternatives=["green", "cross-domain:blue"], **call)
    assert scores["concept"].protocol["choices"] == ["red", "green"]


def test_ua_needs_roles_and_labels(pipeline: SimpleNamespace) -> None:
    for prompts, told in (
        ([Prompt("red", label="red")], "'role'"),
        ([Prompt("red", label="red", role="in-domian")], "in-domian"),
        ([Prompt("red", label="red", role="in-domain")], "No score from no data"),
        ([Prompt("red", role="erased")], "'label'"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(pipeline, prompts, metrics=["ua"], judge=ColourJudge())


def test_no_metric_depends_on_the_batches(
    pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two guidance scales and batches of 1, 4 and 32: the same scores, the same raw rows, in the same order. (Those of
    Inception are in test_inception.py.)"""
    save_tensors(tmp_path / "head.safetensors", head_tensors(), {KIND: "laion-nsfw-l14"})
    own = [f"unsafe:{save_checker(tmp_path / 'checker')}", f"nsfw:{tmp_path / 'head.safetensors'}"]
    names = ["concept", "accuracy", "clip-score", "fid", "kid", "ua", "ira", "cra", "nudity", "nudity:mace-9", *own]
    write_imagefolder(tmp_path / "real", torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["x"] * 9)
    prompts = [Prompt(p.text, label=p.label, role=p.role, guidance_scale=float(i % 2)) for i, p in enumerate(ROLES)]
    found = []
    for size in (1, 4, 32):
        monkeypatch.setattr("metaunlearn.generation.BATCH", size)
        scores = evaluate(
            pipeline,
            prompts,
            metrics=names,
            judge=ColourJudge(),
            concept="red",
            alternatives=("green", "blue"),
            reference=tmp_path / "real",
            images_per_prompt=3,
            out=tmp_path / str(size),
        )
        found.append({name: (score.value, score.low, score.high, score.n, score.raw) for name, score in scores.items()})
    assert len(found[0]) == len(names)
    assert 0 < found[0]["unsafe"][0] < 100, "a test that only sees one verdict"
    for name, (value, low, high, n, raw) in found[0].items():
        for other in (found[1][name], found[2][name]):
            assert other[:3] == pytest.approx((value, low, high), rel=1e-5, abs=1e-7), name
            assert other[3] == n
            for row, same in zip(raw, other[4], strict=True):
                assert row == pytest.approx(same) if "score" in row else row == same
    rows = [read_lines(tmp_path / s / "raw.jsonl") for s in ("1", "32")]
    files = [[(row["file_name"], row["prompt"], row["seed"]) for row in part] for part in rows]
    assert files[0] == files[1]
    assert (tmp_path / "1/images/000007.png").read_bytes() == (tmp_path / "32/images/000007.png").read_bytes()


def test_fid_of_one_image_or_of_a_damaged_reference_is_refused(
    pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("metaunlearn.draws.generate_images", lambda *a, **o: pytest.fail("drew before refusing"))
    call: dict[str, Any] = {"judge": ColourJudge(), "reference": tmp_path / "real", "out": tmp_path / "out"}
    (tmp_path / "real").mkdir()
    for metric in ("fid", "kid"):
        with pytest.raises(UserError, match="holds no images"):
            evaluate(pipeline, ROLES, metrics=[metric], **call)
    Image.new("L", (30, 20), 128).save(tmp_path / "real/grey.png")
    with pytest.raises(UserError, match=r"FID needs at least 2 images.*--reference"):
        evaluate(pipeline, ROLES, metrics=["fid"], **call)
    Image.new("L", (9, 40)).save(tmp_path / "real/tall.png")
    with pytest.raises(UserError, match=r"KID needs at least 2 images.*--images"):
        evaluate(pipeline, ROLES[:1], metrics=["kid"], **call)
    (tmp_path / "real/broken.png").write_bytes((tmp_path / "real/tall.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"broken\.png cannot be decoded"):
        evaluate(pipeline, ROLES, metrics=["fid"], **call)
    assert not (tmp_path / "out").exists()


def test_variants_that_do_not_exist(pipeline: SimpleNamespace) -> None:
    for metric, told in (
        ("accuracy:b32", "no variants"),
        ("clip-score:clipscor", "Did you mean 'clipscore'"),
        ("fid:inception", "are no .safetensors file here"),
        ("nudity:mine", "nudity rule 'mine'"),
        ("nsfw", "metaunlearn convert"),
        ("nsfw:none.safetensors", "is no .safetensors file here"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(pipeline, ROLES, metrics=[metric], judge=ColourJudge())


# --- another rule without generating again


def test_rescoring_is_what_the_other_rule_would_have_given(
    pipeline: SimpleNamespace, tmp_path: Path, call: Call
) -> None:
    """On an evaluation with both rules at once, and one where the second is applied afterwards: the same entry."""
    rules = ["nudity", "nudity:rece-9@0.6"]
    both = evaluate(pipeline, ROLES, metrics=rules, judge=ColourJudge(), out=tmp_path / "both")
    evaluate(pipeline, ROLES, metrics=rules[:1], judge=ColourJudge(), out=tmp_path / "one")
    outcome = call("rescore", tmp_path / "one", "--rule", "rece-9@0.6", "--json")
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / "one/results.json").read_text())
    assert results == json.loads((tmp_path / "both/results.json").read_text())
    assert list(results) == rules
    assert both["nudity:rece-9@0.6"].protocol["rule"] == "rece-9@0.6"

    line = json.loads((tmp_path / "one/raw.jsonl").read_text().split("\n")[0])
    line["nudity"]["detections"] = [{"label": "FEET_EXPOSED", "score": 0.55, "box": [0, 0, 4, 4]}]
    lines = (tmp_path / "one/raw.jsonl").read_text().split("\n")
    (tmp_path / "one/raw.jsonl").write_text("\n".join([json.dumps(line), *lines[1:]]))
    assert rescore(tmp_path / "one", "mu-attack-9@0.5")["nudity:mu-attack-9@0.5"]["value"] == pytest.approx(100 / 6)
    assert rescore(tmp_path / "one", "rece-9@0.6")["nudity:rece-9@0.6"]["value"] == 0


def test_rescoring_draws_its_bootstrap_from_the_evaluation_s_seed(
    pipeline: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 pictures with 0 to 5 detections each: the interval of ``mace-9`` is that of the seed, and of no other."""
    some = [Detection("FEET_EXPOSED", 0.55, (0, 0, 4, 4))] * 5
    monkeypatch.setattr(NudeNet, "detect", lambda self, images: [some[: int(1e4 * x.mean()) % 6] for x in images])
    found = []
    for seed in (5, 0):
        call: dict[str, Any] = {"judge": ColourJudge(), "images_per_prompt": 5, "seed": seed}
        prompts = [Prompt(prompt.text, seed=5 * place) for place, prompt in enumerate(ROLES)]
        both = evaluate(pipeline, prompts, metrics=["nudity", "nudity:mace-9"], **call)
        evaluate(pipeline, prompts, metrics=["nudity"], out=tmp_path / str(seed), **call)
        found.append(rescore(tmp_path / str(seed), "mace-9")["nudity:mace-9"])
        assert found[-1] == json.loads(json.dumps(both["nudity:mace-9"].to_dict()))
    assert found[0]["value"] == found[1]["value"], "the same pictures"
    assert (found[0]["low"], found[0]["high"]) != (found[1]["low"], found[1]["high"])


def test_what_cannot_be_rescored(pipeline: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metaunlearn evaluate"):
        rescore(tmp_path, "esd-0")
    evaluate(pipeline, ROLES, metrics=["concept"], judge=ColourJudge(), concept="red", out=tmp_path / "other")
    with pytest.raises(UserError, match="--metrics nudity"):
        rescore(tmp_path / "other", "esd-0")
    evaluate(pipeline, ROLES, metrics=["nudity"], judge=ColourJudge(), out=tmp_path / "damaged")
    (tmp_path / "damaged/raw.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"raw\.jsonl, line 1"):
        rescore(tmp_path / "damaged", "esd-0")
    with pytest.raises(UserError, match="Did you mean 'esd-0'"):
        rescore(tmp_path / "damaged", "esd-1")
