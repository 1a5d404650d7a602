"""Which judge is asked: none by default but on Canvas, only for words that it knows, and at a revision that is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

from conftest import Call
from metaunlearn.canvas.build import tokenizer
from metaunlearn.errors import UserError
from metaunlearn.generation import Sampling, write_sampling
from metaunlearn.metrics.concept import concept_score
from metaunlearn.metrics.hub import PINNED
from metaunlearn.metrics.judge import load_judge
from tiny_judges import save_clip
from tiny_models import new_sd1

COMMIT, OTHER = "1" * 40, "2" * 40
B32 = "openai/clip-vit-base-patch32"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


# --- by default


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not Canvas: its tokenizer lacks the styles, by which Canvas is known."""
    folder = tmp_path_factory.mktemp("models") / "elsewhere"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "STYLES", ())
        new_sd1().save_pretrained(folder, safe_serialization=True)
    write_sampling(folder, Sampling(steps=2, guidance_scale=2.0))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.csv"
    file.write_text("text,label\na knife,knife\n")
    return file


@pytest.mark.parametrize("metric", ["concept", "accuracy", "clip-score"])
def test_another_model_than_canvas_has_no_judge(
    call: Call, elsewhere: Path, prompts: Path, tmp_path: Path, metric: str
) -> None:
    asked = ("evaluate", elsewhere, "--prompts", prompts, "--metrics", metric)
    looked_for = ("--concept", "knife") if metric == "concept" else ()
    outcome = call(*asked, *looked_for, "--out", tmp_path / "out")
    assert (outcome.code, "--judge" in outcome.err, B32 in outcome.err) == (2, True, True), outcome.err
    assert not (tmp_path / "out").exists()


def test_a_metric_with_a_model_of_its_own_needs_no_judge(
    call: Call, elsewhere: Path, prompts: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", elsewhere, "--prompts", prompts, "--metrics", "nudity", "--json")
    outcome = call(*asked, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["results"]["nudity"]["value"] == 0


def test_what_descends_from_canvas_is_seen_by_its_judge(
    call: Call, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    asked = ("evaluate", tiny_model, "--prompts", prompts, "--metrics", "concept", "--concept", "knife", "--json")
    outcome = call(*asked, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["results"]["concept"]["protocol"]["judge"] == "canvas"


@pytest.mark.parametrize("kind", ["unlearndiffatk", "search"])
def test_attacks_on_another_model_have_no_judge(
    call: Call, elsewhere: Path, prompts: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    how: tuple[Any, ...] = ("--kind", kind, "--base", elsewhere)
    if kind == "search":
        how = ("--search", "--data", pictures, "--steps", "1")
    asked = ("attack", elsewhere, *how, "--prompts", prompts, "--concept", "knife", "--alternative", "axe")
    outcome = call(*asked, "--out", tmp_path / "out")
    assert (outcome.code, "only Canvas has one of its own" in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "out").exists()


# --- what Canvas's judge knows


def test_canvas_s_judge_is_asked_for_nothing_that_canvas_does_not_draw() -> None:
    for labels, told in (
        (["Barack Obama", "knife"], "'Barack Obama'"),
        (["knife|knive", "axe"], "Did you mean 'knife'"),
        (["openmojy"], "Did you mean 'openmoji'"),
    ):
        with pytest.raises(UserError, match=told):
            load_judge("canvas", labels=labels)
    with pytest.raises(UserError, match="'supernova'"):
        concept_score(load_judge("canvas"), torch.zeros(1, 3, 64, 64), "knife", ["supernova"])


# --- at a revision


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache; the hub itself is out of reach."""

    def unreachable(self: HfApi, *arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache: Path, repository: str, commit: str, clip_folder: Path, *, branch: str = "") -> Path:
    """The folder of a revision of ``repository`` in the ``cache``."""
    home = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(clip_folder, home / "snapshots" / commit)
    if branch:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit)
    return home / "snapshots" / commit


def test_a_revision_is_read_from_the_cache_and_said(cache: Path, clip_folder: Path) -> None:
    cached(cache, "some/clip", OTHER, clip_folder, branch="main")
    cached(cache, "some/clip", COMMIT, clip_folder)
    for spec, revision in ((f"some/clip@{COMMIT}", COMMIT), ("some/clip@main", OTHER), ("some/clip", OTHER)):
        judge = load_judge(spec)
        score = concept_score(judge, torch.zeros(1, 3, 32, 32), "knife", ["axe"])
        assert score.protocol["judge"] == f"some/clip@{revision}"


def test_standard_clips_are_pinned(cache: Path, clip_folder: Path) -> None:
    """What the main branch is does not matter; another revision has to be named."""
    cached(cache, B32, COMMIT, clip_folder, branch="main")
    with pytest.raises(UserError, match=f"hf download {B32} --revision {PINNED[B32]}"):
        load_judge(B32)
    assert load_judge(f"{B32}@{COMMIT}").name == f"{B32}@{COMMIT}"
    cached(cache, B32, PINNED[B32], clip_folder)
    assert load_judge(B32).name == f"{B32}@{PINNED[B32]}"
    assert {len(revision) for revision in PINNED.values()} == {40}


def test_what_the_cache_has_in_part_is_asked_of_the_hub(cache: Path, clip_folder: Path) -> None:
    """Without its preprocessor a judge would scale images by guess."""
    (cached(cache, "some/clip", COMMIT, clip_folder) / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"could not be had from the hub \(OSError\)"):
        load_judge(f"some/clip@{COMMIT}")


def test_a_grid_on_another_model_names_its_judge(cache: Path, clip_folder: Path) -> None:
    from metaunlearn.bench.inputs import Inputs
    from metaunlearn.bench.recipe import Grid

    shared = {"methods": ("uce",), "concepts": ({"name": "knife"},)}
    assert Inputs(Grid(base="canvas", **shared)).judge().value == "canvas"
    with pytest.raises(UserError, match="some/model has none of its own"):
        Inputs(Grid(base="some/model", **shared)).judge()
    cached(cache, "some/clip", COMMIT, clip_folder, branch="main")
    given = Inputs(Grid(base="some/model", **shared), use=["judge=some/clip"]).judge()
    assert given == ("some/clip", f"some/clip@{COMMIT}", ())


def test_a_grid_knows_a_judge_by_its_revision(cache: Path, clip_folder: Path) -> None:
    from metaunlearn.bench.identity import judge_identity

    cached(cache, B32, COMMIT, clip_folder, branch="main")
    assert judge_identity(B32) is None
    assert judge_identity(f"{B32}@{COMMIT}") == f"{B32}@{COMMIT}"
