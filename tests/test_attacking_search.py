"""``--search`` and ``--strip``: the trials, the worst of them, and the row of pictures; the command line of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageDraw
from safetensors.torch import load_file

from attack_fixtures import FAST, UNET, write_pictures
from colours import ColourJudge
from conftest import TINY_SIZE, Call
from metaunlearn import attacking_search
from metaunlearn.attacking import attack
from metaunlearn.attacking_search import Search, Trial, search_attacks
from metaunlearn.attacks.registry import KINDS
from metaunlearn.attacks.strip import Strip
from metaunlearn.data.prompts import Prompt
from metaunlearn.errors import RunError, UserError
from metaunlearn.generation import generate_images
from metaunlearn.metrics.tables import table_of
from metaunlearn.models import load
from tiny_judges import save_checker

GRID = ("optimizers=adamw,sgd", "factors=1,2", "subsets=x", "images=2", "sgd_factor=10", *FAST)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def search(model: Path, pictures: Path, out: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    return search_attacks(
        model,
        pictures,
        **{"steps": 2, "prompts": [Prompt("a knife", seed=3)], "judge": ColourJudge(), "concept": "red"} | options,
        overrides=overrides or GRID,
        out=out,
    )


@pytest.fixture(scope="module")
def searched(tiny_model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    search(tiny_model, pictures, out)
    return out


def test_every_combination_is_a_trial(searched: Path, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """Recipe small: 1e-4; factors 1 and 2; ten times that for SGD."""
    rows = json.loads((searched / "search.json").read_text())
    assert [row["trial"] for row in rows] == ["adamw-0.0001-x", "adamw-0.0002-x", "sgd-0.001-x", "sgd-0.002-x"]
    attack(
        tiny_model, pictures, steps=(2,), overrides=[*FAST, "optimizer=sgd", "learning_rate=0.002", "subset=x"],
        out=tmp_path / "alone",
    )  # fmt: skip
    alone, trial = load_file(tmp_path / "alone" / UNET), load_file(searched / "trials/sgd-0.002-x/attack" / UNET)
    assert all(torch.equal(alone[name], trial[name]) for name in alone)


def test_the_worst_case_is_the_strongest_trial_on_fresh_seeds(searched: Path) -> None:
    rows = json.loads((searched / "search.json").read_text())
    results = json.loads((searched / "results.json").read_text())
    worst = results["concept_worst_case"]["protocol"]["trial"]
    strongest = max(rows, key=lambda row: row["concept"]["value"])
    assert worst == strongest["trial"]
    assert results["concept"]["protocol"]["seeds"] == "0-1"
    assert results["concept_worst_case"]["protocol"]["seeds"] == "2-3"
    assert results["concept_worst_case"]["n"] == 2


def test_the_strongest_trial_wins_and_a_failed_one_is_said(
    tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of 10, 90, a loss that is not finite, and 50: the second wins."""
    values = {"adamw-0.0001-x": 10.0, "adamw-0.0002-x": 90.0, "sgd-0.002-x": 50.0}
    whole, score = attacking_search.attack, attacking_search._Judged.score

    def attacks(*arguments: Any, out: Path, **options: Any) -> Any:
        if out.parent.name == "sgd-0.001-x":
            raise RunError("the loss is not finite")
        return whole(*arguments, out=out, **options)

    def judged(self: Any, model: Any, out: Path, *, fresh: bool = False) -> Any:
        found = score(self, model, out, fresh=fresh)
        return replace(found, value=values.get(out.parent.name, found.value))

    monkeypatch.setattr(attacking_search, "attack", attacks)
    monkeypatch.setattr(attacking_search._Judged, "score", judged)
    summary = search(tiny_model, pictures, tmp_path / "run")
    assert summary["worst"] == "adamw-0.0002-x"
    rows = json.loads((tmp_path / "run" / "search.json").read_text())
    assert rows[2]["failed"] == "the loss is not finite"
    assert "concept" not in rows[2]


def test_worst_cases_share_a_table_whichever_trial_won(searched: Path, tmp_path: Path) -> None:
    """Of another model the strongest trial may be another; another budget of steps is another question."""
    results = json.loads((searched / "results.json").read_text())
    protocol = results["concept_worst_case"]["protocol"]
    assert protocol["attack"]["steps"] == 2
    for name, change in (("other", {"trial": "sgd-7-f"}), ("longer", {"attack": protocol["attack"] | {"steps": 3}})):
        worst = results["concept_worst_case"] | {"protocol": protocol | change}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps({"concept_worst_case": worst}))
    assert len(table_of([searched, tmp_path / "other"]).rows) == 2
    with pytest.raises(UserError, match="attack: "):
        table_of([searched, tmp_path / "longer"])


def test_an_interrupted_search_resumes(tiny_model: Path, pictures: Path, searched: Path, tmp_path: Path) -> None:
    def stop(label: str, done: int, total: int) -> None:
        if label == "searching" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny_model, pictures, tmp_path / "run", progress=stop)
    search(tiny_model, pictures, tmp_path / "run", resume=True)
    for file in ("search.json", "results.json"):
        assert (tmp_path / "run" / file).read_text() == (searched / file).read_text()


def test_bad_searches_are_refused(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for says, overrides in (
        ("--set subsets=A,B", ["subset=x"]),
        ("--set optimizers=A,B", ["optimizer=sgd"]),
        ("ubset 'y'", ["subsets=x,y"]),
        ("optimizers", ["optimizers=lion"]),
        ("Did you mean 'batch_size'", ["batch_sise=2"]),
    ):
        with pytest.raises(UserError, match=says):
            search(tiny_model, pictures, out, *overrides)
    with pytest.raises(UserError, match="--steps N"):
        search(tiny_model, pictures, out, steps=0)
    assert not out.exists()


def test_a_trial_says_what_it_is() -> None:
    trial = Trial("sgd", 0.01, "x")
    assert trial.name == "sgd-0.01-x"
    assert trial.overrides == ["optimizer=sgd", "learning_rate=0.01", "subset=x"]
    assert len(attacking_search._trials(Search(), 1e-5)) == 12


# --- The strip -------------------------------------------------------------------------------------------------------


def test_the_strip_shows_each_step(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = attack(tiny_model, pictures, steps=(0, 1, 3), strip="a knife", overrides=FAST, seed=4, out=out)
    strip = Image.open(out / "strip.png").convert("RGB")
    assert strip.size == (3 * TINY_SIZE + 2 * 4, TINY_SIZE + 14)
    for number, (step, folder) in enumerate(found.checkpoints.items()):
        drawn = generate_images(load(folder).pipeline, ["a knife"], [4])[0]
        tile = strip.crop((number * (TINY_SIZE + 4), 0, number * (TINY_SIZE + 4) + TINY_SIZE, TINY_SIZE))
        expected = Image.open(out / "strip" / f"{int(step):06d}.png").convert("RGB")
        assert tile.tobytes() == expected.tobytes()
        pixels = torch.tensor(list(expected.tobytes())).view(TINY_SIZE, TINY_SIZE, 3).permute(2, 0, 1)
        torch.testing.assert_close(pixels / 255, drawn, rtol=0, atol=0.51 / 255)


def test_each_picture_of_a_strip_has_its_step_below(tmp_path: Path) -> None:
    (tmp_path / "strip").mkdir()
    for step in (5, 120):
        Image.new("RGB", (32, 32), "red").save(tmp_path / "strip" / f"{step:06d}.png")
    Strip(tmp_path, "a knife", 0).join([5, 120])
    below = Image.open(tmp_path / "strip.png").convert("RGB").crop((0, 32, 68, 46))
    expected = Image.new("RGB", below.size, "white")
    for step, middle in ((5, 16), (120, 52)):
        ImageDraw.Draw(expected).text((middle, 7), str(step), fill="black", anchor="mm")
    assert ImageChops.difference(below, expected).getbbox() is None


# --- The command line ------------------------------------------------------------------------------------------------


def test_the_commands_pass_everything_on(call: Call, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """Each family of attacks once, for real, with the tiny model; its summary is one JSON object."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a knife\n")
    sets = [word for setting in FAST for word in ("--set", setting)]
    judged = ("--prompts", prompts, "--concept", "knife", "--alternative", "dog")

    def run(name: str, *arguments: object) -> dict[str, Any]:
        outcome = call("attack", tiny_model, *arguments, "--out", tmp_path / name, "--json")
        assert outcome.code == 0, outcome.err
        summary: dict[str, Any] = json.loads(outcome.out)
        return summary

    lora = run("lora", "--kind", "lora", "--data", pictures, "--steps", "0,1", *sets, "--strip", "a knife")
    assert list(lora["checkpoints"]) == ["0", "1"]
    between = run("between", "--kind", "interpolate", "--base", tmp_path / "lora", "--strengths", "0.25,1")
    assert list(between["checkpoints"]) == ["0.25", "1"]
    steps = ("first_timestep=500", "timestep_stride=900", "steps_per_timestep=1", "prefix_tokens=2")
    options = [word for setting in steps for word in ("--set", setting)]
    on_prompts = ("--kind", "unlearndiffatk", "--base", tiny_model, *options)
    found = run("prompts", *on_prompts, *judged)
    assert found["results"]["asr"]["n"] == 1
    half = run("half", *on_prompts, *judged, "--shard", "2/2")
    assert half["waiting_for"] == ["shard-1-of-2"]
    checker = save_checker(tmp_path / "checker")
    for test, rule in (("nudity:rece-9@0.6", "rece-9@0.6"), (f"unsafe:{checker}", "flagged by the safety checker")):
        seen = run(test.partition(":")[0], *on_prompts, "--prompts", prompts, "--success", test)
        assert seen["results"]["asr"]["protocol"]["success"]["rule"] == rule
    grid = ("--set", "factors=1", "--set", "optimizers=sgd", "--set", "subsets=x", "--set", "images=1")
    worst = run("search", "--search", "--data", pictures, "--steps", "1", *judged, *grid, *sets)
    assert worst["worst"] == "sgd-0.1-x"


def test_help_names_every_kind(call: Call) -> None:
    shown = call("attack", "--help").out
    assert [kind for kind in KINDS if kind not in shown] == []


def test_options_that_would_do_nothing_are_refused(
    call: Call, tiny_model: Path, pictures: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a knife\n")
    out = tmp_path / "out"
    on_prompts = ("--kind", "unlearndiffatk", "--prompts", prompts, "--base", tiny_model)
    for says, arguments in (
        ("--prompts would do nothing for finetune", ("--data", pictures, "--prompts", prompts)),
        ("--shard", ("--data", pictures, "--shard", "1/2")),
        ("--steps would do nothing", ("--kind", "unlearndiffatk", "--steps", "5", "--base", tiny_model)),
        ("--concept TEXT", ("--kind", "unlearndiffatk", "--prompts", prompts, "--base", tiny_model)),
        ("--steps N", ("--search", "--data", pictures, "--prompts", prompts, "--concept", "knife")),
        ("--strip would do nothing", ("--search", "--strip", "a knife", "--data", pictures, "--steps", "5")),
        ("--judge would do nothing for finetune", ("--data", pictures, "--judge", "canvas")),
        ("--success would do nothing for finetune", ("--data", pictures, "--success", "nudity")),
        ("--success would do nothing for --search", ("--search", "--success", "nudity", "--data", pictures)),
        ("--concept would do nothing for --success nudity", (*on_prompts, "--success", "nudity", "--concept", "knife")),
        ("Did you mean 'unsafe'", (*on_prompts, "--success", "unsave")),
        ("Did you mean 'rece-9@0.6'", (*on_prompts, "--success", "nudity:rece-9@0.7")),
        ("--success nudity", (*on_prompts, "--judge", "nudity", "--concept", "knife", "--alternative", "dog")),
        ("takes steps", ("--data", pictures, "--strengths", "0.5")),
        ("--strengths", ("--kind", "quantize", "--strengths", "four")),
        ("shard as K/N", ("--kind", "unlearndiffatk", "--prompts", prompts, "--concept", "knife", "--base", tiny_model,
                          "--alternative", "dog", "--shard", "two")),
        ("a strip shows steps", ("--kind", "quantize", "--strip", "a knife")),
    ):  # fmt: skip
        outcome = call("attack", tiny_model, *arguments, "--out", out)
        assert outcome.code == 2
        assert any(part in outcome.err for part in says.split("|")), outcome.err
        assert not out.exists()


def test_another_guidance_or_label_is_another_search(searched: Path, tiny_model: Path, pictures: Path) -> None:
    """A prompt's own seed is none of a search's; all else of it decides what is drawn and counted."""
    again = search(tiny_model, pictures, searched, prompts=[Prompt("a knife", seed=9)], resume=True)
    assert again["worst"]
    for other in (Prompt("a knife", guidance_scale=1.0), Prompt("a knife", label="blue")):
        with pytest.raises(UserError, match="prompts"):
            search(tiny_model, pictures, searched, prompts=[other], resume=True)
