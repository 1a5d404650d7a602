"""The demo's story on Canvas, at counts that take seconds."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from conftest import read_lines
from metaunlearn.data.imagefolder import METADATA, fingerprint
from metaunlearn.errors import UserError
from metaunlearn.report.data import read_summary
from metaunlearn.story import demo

RECIPE = """
[story]
concept = "clown"

[story.erase]
steps = 2
forget_images = 4
retain_images = 4
bank_trajectories = 2
bank_steps = 3
batch_size = 4
{more}

[story.malicious]
steps = [1, 2]
learning_rate = 1e-4
pictures = 4

[story.strong]
steps = [3]
learning_rate = 2e-4
pictures = 4

[story.benign]
steps = [2]
learning_rate = 3e-4
pictures = 4

[story.full]
concept = 4
related = 4
unrelated = 4

[story.between]
concept = 3
related = 0
unrelated = 0

[story.sparse]
concept = 2
related = 0
unrelated = 0
"""


def recipe(folder: Path, more: str = "") -> str:
    file = folder / "story.toml"
    file.write_text(RECIPE.format(more=more))
    return str(file)


def tell(run: Path, *, resume: bool = False) -> dict[str, Any]:
    """The story of this file's tests."""
    return demo(run, recipe=recipe(run.parent), seed=3, overrides=["steps=3"], resume=resume)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    tell(folder / "run")
    return folder / "run"


def test_every_state_of_every_model_is_scored(told: Path) -> None:
    summary = read_summary(told)
    assert summary is not None
    assert summary.concept == "clown"
    assert set(summary.models) == {"original", "unlearn", "meta-unlearn"}
    for model in ("unlearn", "meta-unlearn"):
        scores = summary.models[model]
        assert [sorted(getattr(scores, regime)) for regime in ("malicious", "strong", "benign")] == [[1, 2], [3], [2]]
        assert scores.malicious[1].unrelated is None
        assert scores.malicious[2].unrelated is not None
        pictures = [scores.malicious[1].images, scores.malicious[2].images, scores.strong[3].images]
        assert pictures == [{"concept": 3}, {"concept": 4, "related": 4, "unrelated": 4}, {"concept": 2}]
    assert (told / "report.html").stat().st_size > 10_000
    again = ["--concept", "clown", "--method", "esd-u-1", "--recipe", str(told.parent / "story.toml"), "--seed", "3"]
    assert list(map(shlex.split, summary.commands)) == [["metaunlearn", "demo", *again, "--set", "steps=3"]]


def test_erase_settings_are_the_recipes_then_the_storys_then_the_calls(told: Path) -> None:
    settings = json.loads((told / "meta-unlearn" / "run.json").read_text())["request"]["settings"]
    assert (settings["steps"], settings["batch_size"], settings["inner_optimizer"]) == (3, 4, "adamw")
    pictures = {role: len(list((told / "unlearn" / "data" / role).glob("*.png"))) for role in ("forget", "related")}
    assert pictures == {"forget": 4, "related": 4}


def test_every_run_of_a_story_has_its_seed_and_its_own_settings(told: Path) -> None:
    """The pictures of the concept are drawn from 10 000 019 + 100 003 times the seed on."""
    requests = {file.parent.name: json.loads(file.read_text())["request"] for file in told.glob("**/run.json")}
    assert {request["seed"] for request in requests.values()} == {3}
    rates = {"malicious": 1e-4, "strong": 2e-4, "benign": 3e-4}
    for model in ("unlearn", "meta-unlearn"):
        found = {name: requests[f"{model}-{name}"]["settings"]["learning_rate"] for name in rates}
        assert found == rates
    samples = json.loads((told / "samples" / "samples.json").read_text())
    assert min(sample["seed"] for sample in samples) == 10_000_019 + 3 * 100_003


def test_both_models_are_erased_with_the_same_pictures_and_honest_users_have_others(told: Path) -> None:
    data = told / "unlearn" / "data"
    request = json.loads((told / "meta-unlearn" / "run.json").read_text())["request"]
    assert request["forget_data"] == fingerprint(data / "forget")
    assert request["retain_data"] == {role: fingerprint(data / role) for role in ("related", "unrelated")}
    captions = {
        name: [line["text"] for line in read_lines(told / "data" / name / METADATA)] for name in ("malicious", "benign")
    }
    assert ["clown" in text for text in captions["malicious"]] == [True] * 4
    assert ["clown" in text for text in captions["benign"]] == [False] * 4


def test_a_killed_story_goes_on_with_what_is_there(told: Path) -> None:
    """It was killed before the last state was scored; that state's figures are then the same again."""
    lost = told / "scores" / "unlearn" / "strong-3.json"
    figures = lost.read_text()
    kept = [file for pattern in ("scores/*/*.json", "**/*.safetensors") for file in told.glob(pattern) if file != lost]
    before = {file: file.stat().st_mtime_ns for file in kept}
    lost.unlink()
    record = json.loads((told / "run.json").read_text())
    (told / "run.json").write_text(json.dumps({**record, "status": "running"}))
    models = json.loads((told / "summary.json").read_text())["models"]
    again = tell(told, resume=True)
    assert again["models"] == models
    assert again == json.loads((told / "summary.json").read_text())
    assert lost.read_text() == figures
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    assert json.loads((told / "run.json").read_text())["status"] == "complete"


def test_a_finished_story_is_read_not_told_again(told: Path) -> None:
    before = (told / "summary.json").stat().st_mtime_ns
    again = tell(told, resume=True)
    assert again == json.loads((told / "summary.json").read_text())
    assert (told / "summary.json").stat().st_mtime_ns == before


def test_a_finished_storys_report_comes_back_and_other_versions_are_said(
    told: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = told / "summary.json"
    text = summary.read_text()
    found = json.loads(text)
    found["versions"]["torch"] = "1.0"
    summary.write_text(json.dumps(found))
    (told / "report.html").unlink()
    tell(told, resume=True)
    assert (told / "report.html").exists()
    assert "told by torch 1.0 (now " in caplog.text
    summary.write_text(text)


def test_a_story_that_was_told_by_other_settings_is_not_todays(told: Path) -> None:
    """A recipe that the story's extends, or takes, may have changed since."""
    text = (told / "run.json").read_text()
    record = json.loads(text)
    record["request"]["erasing"]["settings"]["gamma2"] = 77.0
    (told / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"differently \(erasing\): erasing.settings.gamma2 was 77.0 and is"):
        tell(told, resume=True)
    (told / "run.json").write_text(text)


def test_cards_say_what_was_measured(told: Path) -> None:
    for model in ("unlearn", "meta-unlearn"):
        assert "Nothing yet" not in (told / model / "README.md").read_text()


def test_unknown_erase_key_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown key 'gama2'"):
        demo(tmp_path / "run", recipe=recipe(tmp_path, "gama2 = 1.0"))
    assert not (tmp_path / "run").exists()


def test_steps_that_do_not_ascend_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = Path(recipe(tmp_path))
    file.write_text(file.read_text(encoding="utf-8").replace("steps = [1, 2]", "steps = [2, 1]"), encoding="utf-8")
    with pytest.raises(UserError, match=r"steps that ascend, such as \[10, 20\], got \[2, 1\]"):
        demo(tmp_path / "run", recipe=str(file))


def test_the_strong_attacker_has_the_malicious_ones_pictures(tmp_path: Path) -> None:
    file = Path(recipe(tmp_path))
    file.write_text(
        file.read_text(encoding="utf-8").replace(
            "steps = [3]\nlearning_rate = 2e-4\npictures = 4", "steps = [3]\nlearning_rate = 2e-4\npictures = 8"
        ),
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="expected as many, got 8 and 4"):
        demo(tmp_path / "run", recipe=str(file))


@pytest.mark.parametrize("given", [{"concept": ""}, {"method": ""}])
def test_an_empty_name_is_not_the_recipes(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="''"):
        demo(tmp_path / "run", recipe=recipe(tmp_path), **given)
