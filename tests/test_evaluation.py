"""Evaluation from prompts to files, on a fake generator and on a tiny real pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from colours import COLOURS, ColourJudge
from conftest import TINY_SIZE, new_tiny_pipeline, read_lines
from metaunlearn import draws
from metaunlearn.checkpoint import save_tensors
from metaunlearn.data.imagefolder import read_imagefolder, write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import RunError, UserError
from metaunlearn.evaluating import evaluate_into
from metaunlearn.evaluation import METRICS, evaluate, ranges
from metaunlearn.metrics.concept import concept_score
from metaunlearn.metrics.fid import fid_score
from metaunlearn.metrics.nsfw import KIND
from metaunlearn.metrics.safety import SafetyChecker
from metaunlearn.metrics.unlearncanvas import ROLES
from tiny_judges import head_tensors, save_checker
from tiny_models import new_sdxl

PROMPTS = [Prompt("red", label="red"), Prompt("green", seed=70, label="green"), Prompt("blue", label="red")]


@pytest.fixture
def pipeline() -> SimpleNamespace:
    """As much of a pipeline as is looked at before images are made."""
    return SimpleNamespace(config={}, unet=SimpleNamespace(config=SimpleNamespace(sample_size=2)), vae_scale_factor=4)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "unet", "vae"])
def test_a_run_is_not_resumed_with_any_other_weights(component: str, tmp_path: Path) -> None:
    """The folder stays where it is; one number in one component of its pipeline changes."""
    model, prompts, options = tmp_path / "model", tmp_path / "prompts.txt", {"metrics": ["concept"], "concept": "knife"}
    prompts.write_text("a knife\n")
    pipeline = new_sdxl()
    pipeline.save_pretrained(model)
    evaluate_into(str(model), prompts, tmp_path / "out", **options)  # type: ignore[arg-type]
    evaluate_into(str(model), prompts, tmp_path / "out", resume=True, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        next(getattr(pipeline, component).parameters()).view(-1)[0] += 1
    pipeline.save_pretrained(model)
    with pytest.raises(UserError, match="weights"):
        evaluate_into(str(model), prompts, tmp_path / "out", resume=True, **options)  # type: ignore[arg-type]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of a generator that paints what the prompt names, as bright as the seed says."""
    made: list[dict[str, Any]] = []

    def paint(
        pipeline: object,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        **how: Any,
    ) -> Tensor:
        made.append({"prompts": prompts, "seeds": seeds, "steps": steps, "guidance_scale": guidance_scale})
        images = torch.zeros(len(prompts), 3, 8, 8)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            image[COLOURS.index(prompt)] = 0.5 + seed / 200
        return images

    monkeypatch.setattr("metaunlearn.draws.generate_images", paint)
    return made


def test_seeds_guidance_and_order(pipeline: SimpleNamespace, calls: list[dict[str, Any]]) -> None:
    prompts = [Prompt("red", guidance_scale=2.0), Prompt("green", seed=70), Prompt("blue", guidance_scale=0.0)]
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"metrics": ["concept"], "judge": ColourJudge(), "concept": "blue", "seed": 10}
    scores = evaluate(
        pipeline, prompts, **options, images_per_prompt=2, progress=lambda done, total: seen.append((done, total))
    )
    assert [(call["prompts"], call["seeds"], call["guidance_scale"]) for call in calls] == [
        (["red", "red"], [10, 11], 2.0),
        (["green", "green"], [70, 71], 7.5),
        (["blue", "blue"], [14, 15], 1.0),  # As it is drawn: diffusers guides above 1 only.
    ]
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert [row["saw"] for row in scores["concept"].raw] == ["red", "red", "green", "green", "blue", "blue"]
    assert scores["concept"].protocol["guidance_scale"] == [1.0, 2.0, 7.5]
    calls.clear()
    evaluate(pipeline, prompts, **options, guidance_scale=3.0, steps=4)
    assert [(call["seeds"], call["steps"], call["guidance_scale"]) for call in calls] == [([10, 70, 12], 4, 3.0)]


def test_what_is_written_says_how_it_was_measured(
    pipeline: SimpleNamespace, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_imagefolder(tmp_path / "real", torch.rand(4, 3, 8, 8), ["x"] * 4)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    scores = evaluate(
        pipeline,
        PROMPTS,
        metrics=["concept", "accuracy", "clip-score", "fid"],
        judge=ColourJudge(),
        concept="red",
        reference=tmp_path / "real",
        out=tmp_path / "out",
        steps=5,
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == {name: score.to_dict() for name, score in scores.items()}
    assert [round(results[name]["value"], 3) for name in ("concept", "accuracy", "clip-score")] == [33.333, 66.667, 100]
    protocol = results["fid"]["protocol"]
    expected = {"metric": "fid", "steps": 5, "guidance_scale": 7.5, "seeds": "0 70 2", "image_size": [8, 8]}
    assert {key: protocol[key] for key in expected} == expected
    assert {len(protocol[key]) for key in ("prompts", "reference", "judge_weights")} == {64}
    raw = read_lines(tmp_path / "out" / "raw.jsonl")
    assert [row["seed"] for row in raw] == [0, 70, 2]
    assert raw[2]["accuracy"] == {"saw": "blue", "label": "red"}
    assert raw[1]["clip-score"]["score"] == pytest.approx(100)

    saved = read_imagefolder(tmp_path / "out" / "images", size=8)
    assert [file.relative_to(tmp_path / "out").as_posix() for file in saved.files] == [row["file_name"] for row in raw]
    again = concept_score(ColourJudge(), (saved.images + 1) / 2, "red", ["green", "blue"])
    assert again.value == results["concept"]["value"]
    real = read_imagefolder(tmp_path / "real", size=8)
    distance = fid_score(ColourJudge(), (saved.images + 1) / 2, (real.images + 1) / 2).value
    assert distance == pytest.approx(results["fid"]["value"], rel=1e-5)

    with pytest.raises(UserError, match="already holds"):
        evaluate(pipeline, PROMPTS, metrics=["concept"], judge=ColourJudge(), concept="red", out=tmp_path / "out")


def test_images_are_measured_as_the_png_holds_them(
    pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """0.5 + 1e-4 and 0.5 are the same 8-bit value, so neither channel is brighter: the first choice wins the tie."""
    image = torch.full((1, 3, 8, 8), 0.5)
    image[:, 1] += 1e-4
    monkeypatch.setattr("metaunlearn.draws.generate_images", lambda *args, **options: image)
    scores = evaluate(pipeline, PROMPTS[:1], metrics=["concept"], judge=ColourJudge(), concept="red")
    assert scores["concept"].value == 100


def test_a_damaged_model_gives_no_score(
    pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = torch.full((1, 3, 8, 8), torch.nan)
    monkeypatch.setattr("metaunlearn.draws.generate_images", lambda *args, **options: image)
    with pytest.raises(RunError, match="1 of 1 generated images"):
        evaluate(pipeline, PROMPTS[:1], metrics=["concept"], judge=ColourJudge(), concept="red", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metrics": ["conzept"]}, "Did you mean 'concept'"),
        ({"metrics": []}, "There are: concept, accuracy, clip-score, fid"),
        ({"prompts": []}, "No score from no data"),
        ({"concept": None}, "--concept"),
        ({"concept": "teapot"}, "--alternative"),
        ({"metrics": ["fid"]}, "--reference"),
        ({"metrics": ["fid"], "reference": "nowhere"}, "does not exist"),
        ({"metrics": ["accuracy"], "prompts": [Prompt("red")]}, "'label'"),
        ({"metrics": ["accuracy"], "prompts": [Prompt("red", label="teapot")]}, "--alternative"),
        ({"alternatives": ["red"]}, "stands twice"),
        ({"images_per_prompt": 0}, "--images"),
        ({"steps": -1}, "--steps"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
    ],
)
def test_what_is_refused_before_any_image_is_made(
    pipeline: SimpleNamespace, calls: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    call = {"prompts": PROMPTS, "metrics": ["concept"], "judge": ColourJudge(), "concept": "red", **change}
    with pytest.raises(UserError) as caught:
        evaluate(pipeline, call.pop("prompts"), **call, out=tmp_path / "out")
    assert told in str(caught.value)
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_a_judge_without_features_is_refused_before_any_image_is_made(
    pipeline: SimpleNamespace, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_imagefolder(tmp_path / "real", torch.rand(2, 3, 8, 8), ["x"] * 2)

    class NoFeatures(ColourJudge):
        def embed_images(self, images: Tensor) -> Tensor:
            raise UserError("no features")

        def embed_texts(self, texts: Sequence[str]) -> Tensor:
            raise UserError("no features")

    for metric in ("clip-score", "fid"):
        with pytest.raises(UserError, match="no features"):
            evaluate(pipeline, PROMPTS, metrics=[metric], judge=NoFeatures(), reference=tmp_path / "real")
    assert calls == []


def test_a_metrics_own_model_runs_where_it_is_told(pipeline: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(source: str | None, *, device: str) -> SafetyChecker:
        raise UserError(f"loaded on {device}")

    monkeypatch.setattr(SafetyChecker, "load", load)
    for options, where in (({}, "cpu"), ({"device": "cpu:0"}, "cpu:0")):
        with pytest.raises(UserError, match=f"^loaded on {where}$"):
            evaluate(pipeline, PROMPTS, metrics=["unsafe"], judge=ColourJudge(), **options)


def test_every_metric_is_stamped_with_what_makes_it_comparable(
    pipeline: SimpleNamespace, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_imagefolder(tmp_path / "real", torch.rand(2, 3, 8, 8), ["x"] * 2)
    variants = {"unsafe": f"unsafe:{save_checker(tmp_path / 'checker')}", "nsfw": f"nsfw:{tmp_path}/head.safetensors"}
    save_tensors(tmp_path / "head.safetensors", head_tensors(width=3), {KIND: "laion-nsfw-l14"})
    scores = evaluate(
        pipeline,
        [replace(prompt, role=role) for prompt, role in zip(PROMPTS, ROLES, strict=True)],
        metrics=[variants.get(name, name) for name in METRICS],
        judge=ColourJudge(),
        concept="red",
        reference=tmp_path / "real",
    )
    assert list(scores) == list(METRICS)
    needed = {"metric", "judge", "judge_weights", "rule", "prompts", "seeds", "guidance_scale", "steps", "image_size"}
    for name, score in scores.items():
        assert needed <= set(score.protocol)
        assert score.protocol["metric"] == name


def test_ranges() -> None:
    assert ranges([3, 4, 5, 9, 8, 8]) == "3-5 9 8 8"
    assert ranges([0]) == "0"


def test_a_killed_evaluation_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two of three batches: the resumed run draws the third only, and ends in the same files."""
    monkeypatch.setattr("metaunlearn.generation.BATCH", 2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a knife\na key\na fox\na bell\na cat\n")
    drawn: list[str] = []
    generate_images = draws.generate_images

    def counted(pipeline: object, texts: Sequence[str], *arguments: object, **options: object) -> torch.Tensor:
        drawn.extend(texts)
        return generate_images(pipeline, texts, *arguments, **options)

    def run(name: str, *, stop_at: int | None = None, resume: bool = False) -> None:
        def progress(done: int, _: int) -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        evaluate_into(
            str(tiny_model), prompts, tmp_path / name, metrics=["concept"], concept="knife", resume=resume,
            progress=progress,
        )  # fmt: skip

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", stop_at=4)
    with pytest.raises(UserError, match="--resume"):
        run("killed")
    monkeypatch.setattr(draws, "generate_images", counted)
    run("killed", resume=True)
    assert drawn == ["a cat"]
    for file in ("results.json", "raw.jsonl", "images/000000.png", "images/000004.png"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()
    run("killed", resume=True)
    assert drawn == ["a cat"], "a finished run is read, not repeated"


def test_a_real_pipeline_from_end_to_end(tmp_path: Path) -> None:
    """Untrained, two steps: the same call gives the same scores and the same files."""
    pipeline = new_tiny_pipeline()
    write_imagefolder(tmp_path / "real", torch.rand(3, 3, TINY_SIZE, TINY_SIZE), ["x"] * 3)
    results = []
    for name in ("one", "two"):
        evaluate(
            pipeline,
            [Prompt("a red knife"), Prompt("a blue key")],
            metrics=["concept", "fid"],
            judge=ColourJudge(),
            concept="red",
            reference=tmp_path / "real",
            images_per_prompt=2,
            steps=2,
            out=tmp_path / name,
        )
        results.append((tmp_path / name / "results.json").read_text())
    assert results[0] == results[1]
    assert json.loads(results[0])["concept"]["n"] == 4
    assert len(list((tmp_path / "one" / "images").glob("*.png"))) == 4
