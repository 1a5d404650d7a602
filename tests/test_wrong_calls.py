"""Calls from Python that would go wrong late, or without a word, are refused before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metaunlearn
from attack_fixtures import NEVER
from conftest import Call
from metaunlearn.bench.run import dry_run, run_grid
from metaunlearn.canvas import load_pipeline
from metaunlearn.checkpoint import save_training
from metaunlearn.cli.console import _Bars
from metaunlearn.data.prompts import Prompt
from metaunlearn.diffusion import error_of_each
from metaunlearn.draws import check_asked
from metaunlearn.erasing import EraseResult
from metaunlearn.errors import RunError, UserError
from metaunlearn.generating import generate_into
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.judge import load_judge
from metaunlearn.models import adapt
from metaunlearn.pipelines import save_pipeline
from metaunlearn.recipe import read_recipe
from metaunlearn.tuning.report import report as tune_report


@pytest.fixture(scope="module")
def canvas() -> Any:
    return load_pipeline()


@pytest.mark.parametrize("strengths", [[math.nan], [math.inf], [-0.5], ["a"], 0.5, []])
def test_strengths_are_finite_and_not_negative(canvas: Any, tmp_path: Path, strengths: Any) -> None:
    with pytest.raises(UserError, match="finite numbers of at least 0"):
        metaunlearn.attack(canvas, base="canvas", kind="interpolate", strengths=strengths, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("strengths", [(0.1234567, 0.12345671), (0.5, 0.50000001), (1, 1.0)])
def test_strengths_have_folders_of_their_own(canvas: Any, tmp_path: Path, strengths: Any) -> None:
    with pytest.raises(UserError, match="apart in their first six digits"):
        metaunlearn.attack(canvas, base="canvas", kind="interpolate", strengths=strengths, out=tmp_path / "o")


@pytest.mark.parametrize("meta", ["no", "false", 0, 1.0])
def test_the_meta_objective_is_on_or_off(canvas: Any, meta: Any) -> None:
    with pytest.raises(UserError, match=r"on or off \(meta=True, meta=False\)"):
        metaunlearn.erase(canvas, ["knife"], meta=meta)


def test_what_is_resumed_has_a_folder(canvas: Any) -> None:
    with pytest.raises(UserError, match="resume=True goes on with a run's folder"):
        metaunlearn.erase(canvas, ["knife"], resume=True)


@pytest.mark.parametrize("steps", [[0.5, 1.5], ["1"], [2, 1], []])
def test_steps_are_whole_and_ascend(canvas: Any, tmp_path: Path, steps: Any) -> None:
    with pytest.raises(UserError, match="must be whole numbers from 0 on"):
        metaunlearn.attack(canvas, tmp_path, steps=steps, out=tmp_path / "o")


def test_the_home_folder_may_be_named_as_a_shell_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    metaunlearn.erase(tiny_model, ["zebra"], method="uce", meta=False, out="~/erased")
    metaunlearn.attack("~/erased", kind="quantize", strengths=[8], out="~/attacked")
    assert (tmp_path / "attacked" / "bits-8").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_a_guidance_scale_is_finite(scale: float) -> None:
    with pytest.raises(UserError, match="guidance scale of at least 0"):
        check_asked(images=1, steps=None, guidance_scale=scale)


@pytest.mark.parametrize("concept", ["日本", "\u200b", "\x00"])
def test_a_concept_of_unknown_tokens_alone_is_refused(canvas: Any, concept: str) -> None:
    with pytest.raises(UserError, match="tokenises to nothing"):
        adapt(canvas).check_concept(concept)


def test_a_recipe_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes("description = 'é'".encode("latin-1"))
    with pytest.raises(UserError, match=r"byte 15 is not UTF-8"):
        read_recipe(str(file))


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    model = adapt(load_pipeline())
    next(model.unet.parameters()).data.fill_(math.nan)
    with pytest.raises(RunError, match="the weights of unet are not finite numbers"):
        save_pipeline(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    broken = {"w": torch.tensor([1.0, math.inf])}
    with pytest.raises(RunError, match="not finite numbers after step 3; the last good state was kept"):
        save_training(tmp_path / "state", broken, torch.optim.SGD(broken.values()), 3)
    assert not (tmp_path / "state").exists()


def test_a_result_keeps_how_it_is_drawn(canvas: Any, tmp_path: Path) -> None:
    result = EraseResult(canvas, read_recipe("small").erase, None, {})  # type: ignore[arg-type]
    saved = result.save(tmp_path / "saved")
    assert default_sampling(metaunlearn.load(str(saved)).pipeline) == default_sampling(canvas)
    with pytest.raises(UserError, match="is there already"):
        result.save(saved)


def test_a_target_of_another_shape_is_not_broadcast() -> None:
    with pytest.raises(RunError, match=r"the shape of the model's output, \(2, 4, 8, 8\), got \(2, 1, 8, 8\)"):
        error_of_each(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8))


def test_a_bar_that_begins_again_forgets_that_it_was_full() -> None:
    bars = _Bars()
    bars("erasing", 200, 200)
    bars("erasing", 3, 200)
    (task,) = bars._display.tasks
    assert (task.completed, task.finished) == (3, False)


SMALL = ["steps=1", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2"]


def test_settings_may_be_a_generator_a_recipe_a_path_and_gradients_off(canvas: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "small"\n')
    with pytest.raises(UserError, match="inner_steps"):
        metaunlearn.erase(canvas, "knife", meta=False, overrides=(text for text in [*SMALL, "inner_steps=1"]))  # type: ignore[arg-type]
    with torch.no_grad():
        result = metaunlearn.erase(
            canvas,
            "knife",
            meta=False,
            overrides=iter(SMALL),
            recipe=recipe,
            out=tmp_path / "run",  # type: ignore[arg-type]
        )
    assert result.settings.steps == 1


def test_a_device_that_is_not_there_is_refused_before_any_work(canvas: Any, tmp_path: Path) -> None:
    calls: list[Any] = [
        lambda: metaunlearn.erase(canvas, "knife", device="abacus", out=tmp_path / "o"),
        lambda: metaunlearn.attack(canvas, tmp_path, device="abacus", out=tmp_path / "o"),
        lambda: metaunlearn.load("canvas", "abacus"),
        lambda: tune_report("frontier-canvas", tmp_path / "o", device="abacus"),
        lambda: metaunlearn.tune("frontier-canvas", tmp_path / "o", device="abacus"),
        lambda: run_grid("table1-canvas", tmp_path / "o", device="abacus"),
        lambda: dry_run("table1-canvas", tmp_path / "o", device="abacus"),
        lambda: metaunlearn.evaluate(canvas, "a knife", metrics="concept", concept="knife", device="abacus"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="there is no device 'abacus'"):
            call()
    assert not (tmp_path / "o").exists()
    assert str(metaunlearn.load("canvas", torch.device("cpu")).device) == "cpu"


def test_plain_texts_are_prompts_metrics_and_judges(canvas: Any, tmp_path: Path) -> None:
    """All in one call, and as the classes that the command line makes of them: the same score."""
    options: dict[str, Any] = {"concept": "knife", "steps": 2, "seed": np.int64(3)}
    plain = metaunlearn.evaluate("canvas", ["a knife", "a dog"], metrics="concept", **options)
    judge, prompts = load_judge("canvas"), [Prompt("a knife"), Prompt("a dog")]
    made = metaunlearn.evaluate(canvas, prompts, metrics=["concept"], judge=judge, **options)
    assert {key: score.to_dict() for key, score in plain.items()} == {k: score.to_dict() for k, score in made.items()}
    (tmp_path / "p.txt").write_text("a knife\na dog\n")
    read = metaunlearn.evaluate(canvas, tmp_path / "p.txt", metrics="concept", judge="canvas", **options)
    assert read["concept"].value == made["concept"].value
    with pytest.raises(UserError, match="nowhere"):
        metaunlearn.evaluate(canvas, "a knife", metrics="concept", judge=tmp_path / "nowhere", **options)
    assert generate_into("canvas", "a knife", tmp_path / "drawn", steps=1)["images"] == 1


def test_a_storys_seed_is_a_whole_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a whole number.*--seed"):
        metaunlearn.demo(tmp_path / "out", seed=1.5)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


CALLS: list[tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = [
    (metaunlearn.erase, {"model": "canvas", "concepts": ["knife"]}, ("concepts", "method", "out", "overrides")),
    (
        metaunlearn.attack,
        {"model": "canvas", "data": "data", "out": "o"},
        ("kind", "out", "overrides", "trackers", "data"),
    ),
    (
        metaunlearn.attack_prompts,
        {"model": "canvas", "prompts": ["a"], "success": NEVER, "out": "o"},
        ("prompts", "shard"),
    ),
    (
        metaunlearn.search_attacks,
        {
            "model": "canvas", "data": "data", "steps": 1, "prompts": ["a"], "judge": "canvas", "concept": "knife",
            "out": "o",
        },
        ("data", "out", "steps", "prompts", "alternatives"),
    ),
    (
        metaunlearn.evaluate,
        {"pipeline": "canvas", "prompts": ["a"], "metrics": ["concept"], "concept": "knife"},
        ("prompts", "metrics", "alternatives", "overrides", "judge"),
    ),
    (metaunlearn.evaluate_pictures, {"pictures": "p", "metrics": ["concept"]}, ("pictures", "metrics", "prompts")),
    (metaunlearn.make_set, {"name": "clean", "out": "o", "generator": "canvas"}, ("name", "out", "overrides", "shard")),
    (metaunlearn.make_delta, {"base": "canvas", "model": "canvas", "out": "o.safetensors"}, ("out",)),
    (metaunlearn.apply_delta, {"base": "canvas", "delta": "d.safetensors", "out": "o"}, ("delta", "out")),
    (metaunlearn.export, {"model": "canvas", "out": "o.safetensors"}, ("out",)),
    (metaunlearn.build_report, {"folder": "f"}, ("folder",)),
    (metaunlearn.compare, {"one": "a", "other": "b", "metric": "concept"}, ("one", "other")),
    (metaunlearn.demo, {"out": "o"}, ("out", "overrides")),
    (load_judge, {"spec": "canvas", "labels": ["a"]}, ("spec", "labels")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "sound", "name"),
    [(call, sound, name) for call, sound, names in CALLS for name in names],
    ids=[f"{call.__name__}-{name}" for call, _, names in CALLS for name in names],
)
def test_an_argument_of_another_kind_is_a_mistake_that_is_told(
    call: Callable[..., Any], sound: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number or an object where a path, a name or a list belongs."""
    monkeypatch.chdir(tmp_path)
    for wrong in (3.5, object()):
        with pytest.raises(UserError):
            call(**{**sound, name: wrong})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "sound", "name"),
    [
        (call, sound, name)
        for call, sound, names in CALLS
        for name in ("data", "out", "delta", "folder", "one", "other", "pictures")
        if name in names and (call, name) not in {(metaunlearn.erase, "out"), (metaunlearn.attack, "data")}
    ],
)
def test_a_path_that_is_needed_is_asked_for(
    call: Callable[..., Any], sound: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"a path is needed \({name}=.*\); got None"):
        call(**{**sound, name: None})


def test_none_is_nothing_where_lists_may_be_empty(canvas: Any) -> None:
    for options in ({"alternatives": None}, {"overrides": None}):
        found = metaunlearn.evaluate(canvas, "a knife", metrics="concept", concept="knife", steps=1, **options)
        assert found["concept"].n == 1
    with pytest.raises(UserError, match="at least one prompt"):
        metaunlearn.evaluate(canvas, None, metrics="concept")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"seed": 0.5}, {"images_per_prompt": 1.5}, {"steps": 2.0}])
def test_numbers_of_pictures_are_whole(canvas: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="expected a whole number"):
        metaunlearn.evaluate(canvas, "a knife", metrics="concept", concept="knife", **options)


def test_what_is_no_text_is_refused(canvas: Any) -> None:
    with pytest.raises(UserError, match=r"a prompt is a text, or a Prompt .*, not 3"):
        metaunlearn.evaluate(canvas, [3], metrics="concept", concept="knife")
    with pytest.raises(UserError, match=r"expected texts .*, got 3"):
        metaunlearn.erase(canvas, [3])  # type: ignore[list-item]


def test_a_run_that_was_complete_has_the_same_summary(tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "uce", "meta": False, "seed": np.int64(1), "out": tmp_path / "erased"}
    first = metaunlearn.erase("canvas", "knife", **options).summary
    assert metaunlearn.erase("canvas", "knife", resume=True, **options).summary == first
    assert {"method", "seconds", "out", "edit"} <= first.keys()
    moved: dict[str, Any] = {"kind": "interpolate", "base": "canvas", "strengths": [0.5], "out": tmp_path / "moved"}
    first = metaunlearn.attack(tmp_path / "erased", **moved).summary
    assert metaunlearn.attack(tmp_path / "erased", resume=True, **moved).summary == first
    assert first["checkpoints"] == {"0.5": str(tmp_path / "moved" / "strength-0.50")}


@pytest.mark.parametrize("how", [["--kind", "unlearndiffatk"], ["--data", "p.txt", "--search", "--steps", "2"]])
def test_a_device_is_checked_before_a_judge_is_put_on_it(call: Call, tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "p.txt").write_text("a knife\n")
    how = [str(tmp_path / word) if word == "p.txt" else word for word in how]
    given = ["--prompts", tmp_path / "p.txt", "--concept", "knife", "--base", "canvas", "--device", "abacus"]
    refused = call("attack", "canvas", *how, *given, "--out", tmp_path / "o")
    assert (refused.code, "there is no device 'abacus'" in refused.err) == (2, True), refused.err


def test_what_erasing_returned_is_a_model(tmp_path: Path) -> None:
    result = metaunlearn.erase("canvas", "knife", method="uce", meta=False)
    drawn = metaunlearn.generate_images(result, "a knife", 0, steps=2)
    assert torch.equal(drawn, metaunlearn.generate_images(result.pipeline, ["a knife"], [0], steps=2))
    again = metaunlearn.erase(result, "fork", method="uce", meta=False)
    assert again.pipeline is not result.pipeline
    options: dict[str, Any] = {"metrics": "concept", "concept": "knife", "steps": 2}
    scores = metaunlearn.evaluate(metaunlearn.load(result), "a knife", **options)
    assert scores["concept"].value == metaunlearn.evaluate(result, "a knife", **options)["concept"].value
    moved = metaunlearn.attack(result, kind="interpolate", base="canvas", strengths=[0.5], out=tmp_path / "moved")
    with pytest.raises(UserError, match=r"AttackResult, .* Give the folder of one of its checkpoints"):
        metaunlearn.evaluate(moved, "a knife", **options)
