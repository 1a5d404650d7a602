"""The model card and the upload: what a run folder says of itself, and what leaves the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from conftest import Call
from metaunlearn.cards import _licence_of, write_card
from metaunlearn.erasing import erase
from metaunlearn.errors import RunError, UserError
from metaunlearn.publishing import LEFT_OUT, push, sign_in

FAST = ("steps=1", "forget_images=2", "retain_images=2", "bank_trajectories=2", "bank_steps=2", "batch_size=2")


class FakeHub:
    """Remembers what it was asked; ``signed_in`` and ``works`` make it fail."""

    def __init__(self, *, signed_in: bool = True, works: bool = True) -> None:
        self.signed_in, self.works = signed_in, works
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def whoami(self) -> dict[str, str]:
        if not self.signed_in:
            raise OSError("Token is required\nand more lines")
        return {"name": "somebody"}

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> None:
        if not self.works:
            raise OSError("the line broke")
        self.calls.append(("upload", options))


@pytest.fixture(scope="module")
def erased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "meta-unlearn"
    erase(tiny_model, ["zebra|a striped horse"], related=["a horse"], out=out, overrides=FAST)
    return out


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 1, "high": value + 1, "n": 40, "protocol": {}}


def described(folder: Path, *, model: str = "somebody/model", licence: str | None = None) -> str:
    """The card of a made-up run in ``folder``."""
    request = {
        "command": "erase", "model": model, "concepts": ["zebra"], "method": "esd-u-1", "meta": True, "related": [],
        "retain": [], "settings": {"steps": 7}, "method_settings": {}, "recipe": "sd14", "seed": 3, "weights": "abc123",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    record = {"status": "complete", "request": request, "versions": {"metaunlearn": "1", "torch": "2"}}
    (folder / "run.json").write_text(json.dumps(record))
    return write_card(folder, licence=licence).read_text()


def test_a_fresh_card_says_what_was_done_and_that_nothing_was_measured(erased: Path) -> None:
    text = (erased / "README.md").read_text()
    record = json.loads((erased / "run.json").read_text())
    for words in (
        "# tiny without zebra or a striped horse", "meta-unlearning", "`esd-u-1`", "| `steps` | 1 |", "| `eta` | 1.0 |",
        "Kept by name: a horse", record["request"]["weights"], "Nothing yet", "license: other",
        "library_name: diffusers", "DiffusionPipeline.from_pretrained",
    ):  # fmt: skip
        assert words in text, words
    assert str(erased.parent) not in text
    assert "/tmp" not in text


def test_a_card_of_canvas_credits_the_art_and_says_its_concept_in_one_line(erased: Path, tmp_path: Path) -> None:
    record = json.loads((erased / "run.json").read_text())
    record["model_name"] = "canvas"
    record["request"] |= {"model": "canvas", "concepts": ["<b>&\n# knife"]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    text = write_card(tmp_path).read_text()
    assert "# canvas without &lt;b&gt;&amp; # knife\n" in text
    assert "OpenMoji (CC BY-SA 4.0)" in text


def test_a_card_names_no_text_that_was_not_kept(tiny_model: Path, tmp_path: Path) -> None:
    erase(tiny_model, ["zebra"], method="uce", meta=False, retain=["none"], out=tmp_path / "run")
    text = (tmp_path / "run" / "README.md").read_text()
    assert "without zebra" in text
    assert "Kept by name" not in text


@pytest.mark.parametrize(("model", "named"), [("somebody/model", True), ("some/deep/place", False)])
def test_a_card_names_a_base_model_of_the_hub_and_its_hash(tmp_path: Path, model: str, named: bool) -> None:
    text = described(tmp_path / "run", model=model)
    assert (f"base_model: {model}" in text) == named
    assert "SHA-256 of the base's parameters: `abc123`." in text


def test_the_card_tells_what_lies_beside_the_run(erased: Path, call: Call) -> None:
    """An evaluation before and one after 50 steps of an attack; one of another model is not told. The summary of a
    story has this model's rows only."""
    runs = erased.parent
    states = {"scores": erased, "scores-50": runs / "attacked" / "step-000050", "scores-other": runs / "other"}
    for name, model in states.items():
        (runs / name).mkdir()
        request = {"command": "evaluate", "model": str(model)}
        (runs / name / "run.json").write_text(json.dumps({"request": request}))
        (runs / name / "results.json").write_text(json.dumps({"concept": score(10.0 + len(name))}))
    (runs / "attacked").mkdir()
    request = {"command": "attack", "kind": "finetune", "model": str(erased), "steps": [0, 50]}
    (runs / "attacked" / "run.json").write_text(json.dumps({"request": request}))
    models = {
        "original": {"before": {"concept": [90.0, 85.0, 95.0]}},
        "meta-unlearn": {"before": {"concept": [3.0, 1.0, 7.0]}, "malicious": {"25": {"concept": [8.0, 4.0, 13.0]}}},
    }
    (runs / "summary.json").write_text(json.dumps({"concept": "zebra", "models": models}))
    found = call("card", erased, "--licence", "creativeml-openrail-m")
    assert found.code == 0
    text = (erased / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "[" in line]
    assert lines == [
        "| before | 3.00 [1.00, 7.00] |  |  |",
        "| malicious, 25 steps | 8.00 [4.00, 13.00] |  |  |",
        "| model | metric | value [95 % interval] | n | run |",
        "| before any attack | concept | 16.00 [15.00, 17.00] | 40 | scores |",
        "| after 50 steps of finetune (attacked) | concept | 19.00 [18.00, 20.00] | 40 | scores-50 |",
    ]
    assert "license: creativeml-openrail-m" in text
    assert "Nothing yet" not in text


def test_a_card_has_every_checkpoint_of_its_story_and_each_score_in_its_column(tmp_path: Path) -> None:
    state = {"concept": [3, 1, 7], "related": [80, 70, 90], "unrelated": [60, 50, 70]}
    curve = {"25": {"concept": [8, 4, 13]}, "50": {"concept": [9, 5, 14]}}
    models = {"original": {"before": state}, "unlearn": {"before": state, "malicious": curve}}
    (tmp_path / "summary.json").write_text(json.dumps({"concept": "zebra", "models": models}))
    lines = described(tmp_path / "unlearn").splitlines()
    assert [line for line in lines if "[" in line and line.startswith("| ")] == [
        "| before | 3.00 [1.00, 7.00] | 80.00 [70.00, 90.00] | 60.00 [50.00, 70.00] |",
        "| malicious, 25 steps | 8.00 [4.00, 13.00] |  |  |",
        "| malicious, 50 steps | 9.00 [5.00, 14.00] |  |  |",
    ]


def test_a_checkpoint_is_called_by_its_own_step(erased: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each has a record of its own, whose request is its run's."""
    runs = tmp_path / "runs"
    shutil.copytree(erased, runs / "erased")
    request = {"command": "attack", "kind": "finetune", "model": str(runs / "erased"), "steps": [0, 1, 40]}
    for name, more in (("attacked", {}), *((f"attacked/step-{step:06d}", {"step": step}) for step in (0, 1, 40))):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(json.dumps({"request": request, **more}))
    for step in (0, 1, 40):
        (runs / f"scores-{step}").mkdir()
        asked = {"command": "evaluate", "model": str(runs / "attacked" / f"step-{step:06d}")}
        (runs / f"scores-{step}" / "run.json").write_text(json.dumps({"request": asked}))
        (runs / f"scores-{step}" / "results.json").write_text(json.dumps({"concept": score(5.0 + step)}))
    text = write_card(runs / "erased").read_text()
    assert [line.partition(" [")[0] for line in text.splitlines() if line.startswith("| after")] == [
        f"| after {step} steps of finetune (attacked) | concept | {5 + step}.00" for step in (0, 1, 40)
    ]


def test_a_card_calls_the_model_what_it_was_called_where_it_was_erased(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From within it, from beside it, and from where its relative path is nowhere."""
    shutil.copytree(tiny_model, tmp_path / "models" / "mine")
    for where, model in ((tmp_path, "models/mine"), (tmp_path / "models" / "mine", ".")):
        monkeypatch.chdir(where)
        out = tmp_path / f"erased-{len(model)}"
        erase(model, ["zebra"], method="uce", meta=False, out=out)
        monkeypatch.chdir(tmp_path.parent)
        text = write_card(out).read_text()
        assert "# mine without zebra" in text
        assert "base_model" not in text


def test_a_card_shows_what_its_run_read(tiny_model: Path, tmp_path: Path) -> None:
    erase(tiny_model, ["zebra"], method="uce", meta=False, out=tmp_path / "uce")
    text = (tmp_path / "uce" / "README.md").read_text()
    assert "| `steps` |" not in text
    assert "| `preserve_scale` |" in text
    erase(tiny_model, ["zebra"], meta=False, out=tmp_path / "esd", overrides=FAST)
    text = (tmp_path / "esd" / "README.md").read_text()
    assert "| `steps` | 1 |" in text
    assert "gamma2" not in text
    assert "inner_steps" not in text


def test_a_card_finds_what_was_called_from_elsewhere_and_says_what_was_looked_for(
    erased: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands were called above, by relative paths, and the card is written below: the same card."""
    runs = tmp_path / "my runs"
    shutil.copytree(erased, runs / "erased")
    requests = {
        "attacked": {"command": "attack", "kind": "finetune", "model": "my runs/erased", "steps": [0, 50]},
        "drawn": {"command": "generate", "model": "my runs/erased"},
        "scores": {"command": "evaluate", "model": "my runs/erased"},
        "scores-last": {"command": "evaluate", "model": "my runs/attacked"},
        "scores-drawn": {"command": "evaluate --pictures", "pictures": "my runs/drawn"},
        "scores-of-files": {"command": "evaluate --pictures", "pictures": "my runs/nowhere"},
    }
    for name, request in requests.items():
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(json.dumps({"request": request}))
        if name.startswith("scores"):
            found = score(5.0) | {"protocol": {"concept": "zebra|a striped horse"}}
            (runs / name / "results.json").write_text(json.dumps({"concept": found}))
    monkeypatch.chdir(runs)
    text = write_card(Path("erased")).read_text()
    what = "concept (zebra or a striped horse) | 5.00 [4.00, 6.00] | 40"
    assert [line for line in text.splitlines() if line.startswith("| ") and "[4" in line] == [
        f"| before any attack | {what} | scores |",
        f"| before any attack | {what} | scores-drawn |",
        f"| after 50 steps of finetune (attacked) | {what} | scores-last |",
    ]


def test_attacks_without_steps_and_attacks_that_measure_themselves(erased: Path, tmp_path: Path) -> None:
    """An evaluation of half an interpolation; UnlearnDiffAtk in two shards, and a search, with figures of their own."""
    model, protocol = tmp_path / "meta-unlearn", {"metric": "attack success rate"}
    shutil.copytree(erased, model)
    half = tmp_path / "between" / "strength-0.50"
    of_model = {"command": "attack", "model": str(model)}
    records: dict[Path, dict[str, Any]] = {
        half.parent: {
            "request": {**of_model, "kind": "interpolate", "strengths": [0.25, 0.5]},
            "checkpoints": ["strength-0.25", "strength-0.50"],
        },
        tmp_path / "unfinished": {"request": {**of_model, "kind": "quantize", "strengths": [8]}},
        tmp_path / "scores": {"request": {"command": "evaluate", "model": str(half)}},
        tmp_path / "search": {"request": {**of_model, "kind": "finetune", "search": {}, "steps": 50}},
    }
    for shard in (1, 2):
        request = {**of_model, "kind": "unlearndiffatk", "protocol": protocol}
        records[tmp_path / "prompts" / f"shard-{shard}-of-2"] = {"request": request}
    for path, record in records.items():
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps(record))
    for name, results in {"scores": {"concept": score(30)}, "search": {"concept_worst_case": score(50)},
                          "prompts": {"asr": score(40)}}.items():  # fmt: skip
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    for number, text in enumerate(("{", "[]", '{"request": 1}')):
        (tmp_path / f"others-{number}").mkdir()
        (tmp_path / f"others-{number}" / "run.json").write_text(text)
    lines = write_card(model).read_text().splitlines()
    assert [line for line in lines if line.startswith("| ") and "[" in line] == [
        "| model | metric | value [95 % interval] | n | run |",
        "| strength-0.50 of interpolate (between) | concept | 30.00 [29.00, 31.00] | 40 | scores |",
        "| under finetune --search | concept_worst_case | 50.00 [49.00, 51.00] | 40 | search |",
        "| under unlearndiffatk | asr | 40.00 [39.00, 41.00] | 40 | prompts |",
    ]


def test_the_licence_is_that_of_the_base_models_own_card(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tiny_model / "README.md").write_text("---\nlicense: openrail++\n---\n# tiny\n")
    try:
        erase(tiny_model, ["zebra"], method="uce", meta=False, out=out)
    finally:
        (tiny_model / "README.md").unlink()
    assert "license: openrail++" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ('---\ntags: [x]\nlicense: "mit"\n---\n', "mit"),
        ("---\nlicense: mit # as theirs\n---\n", "mit"),
        ("---\nlicense:\ntags:\n- x\n---\n", None),
        ("---\ntags: [x]\n---\nlicense: unknown\n", None),
        ("# about\nlicense: unknown\n", None),
    ],
)
def test_only_what_a_card_begins_with_says_its_licence(tmp_path: Path, card: str, licence: str | None) -> None:
    (tmp_path / "README.md").write_text(card)
    assert _licence_of(str(tmp_path)) == licence


def test_the_licence_that_is_given_goes_over_the_base_models_own(tmp_path: Path) -> None:
    """And where there is neither, the card says how to give one."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    base = str(tmp_path / "base")
    assert "license: mit\n" in described(tmp_path / "run", model=base)
    assert "license: openrail\n" in described(tmp_path / "run", model=base, licence="openrail")
    assert "`metaunlearn card DIR --licence NAME` sets it" in described(tmp_path / "run", model=str(tmp_path / "no"))


def test_only_a_complete_erasing_run_has_a_card(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="no complete run"):
        write_card(tiny_model)


def test_push_uploads_everything_but_pictures_and_state(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    hub, out = FakeHub(), tmp_path / "out"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    erase = ("erase", tiny_model, "--concept", "zebra", "--method", "uce", "--no-meta", "--out", out)
    assert call(*erase, "--push", "somebody/tiny-without-zebra").code == 0
    assert call("card", out, "--push", "somebody/tiny-without-zebra").code == 0
    created, uploaded = hub.calls[:2]
    assert created == ("create", {"repo_id": "somebody/tiny-without-zebra", "private": True, "exist_ok": True})
    assert uploaded[1]["folder_path"] == str(out)
    assert {"data/*", "state/*"} <= set(uploaded[1]["ignore_patterns"])
    assert hub.calls[2:] == hub.calls[:2]


def test_what_says_something_of_this_machine_stays_here() -> None:
    files = ["run.json", "unet/model.safetensors", "state/t.pt", "data/forget/a.png", "trackers/x/events", ".a.partial"]
    assert [*filter_repo_objects(files, ignore_patterns=[*LEFT_OUT])] == ["run.json", "unet/model.safetensors"]


def test_push_is_checked_before_any_work(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(signed_in=False))
    out = tmp_path / "out"
    erase_to = ("erase", tiny_model, "--concept", "zebra", "--out", out)
    for repository, says in (("somebody/tiny", "hf auth login"), ("tiny", "OWNER/NAME")):
        found = call(*erase_to, "--push", repository)
        assert found.code == 2
        assert says in found.err
        assert not out.exists()
    with pytest.raises(UserError, match="--out"):
        erase(tiny_model, ["zebra"], push="somebody/tiny")


def test_a_failed_upload_keeps_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    hub = FakeHub(works=False)
    with pytest.raises(RunError, match=r"the line broke.*metaunlearn card"):
        push(tmp_path, "somebody/tiny", sign_in("somebody/tiny", hub))
