"""Trackers: they get what ``log.jsonl`` gets, change no bit of the weights, and their failures end no run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking as accelerates
from accelerate.tracking import GeneralTracker

from attack_fixtures import write_pictures
from conftest import Call, read_lines, same_weights
from metaunlearn.attacking import attack
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError
from metaunlearn.tracking import flat, tracking

FAST: dict[str, Any] = {"steps": (4,), "overrides": ("batch_size=2", "checkpoint_every=2")}
ERASING = ("steps=1", "forget_images=2", "retain_images=2", "bank_trajectories=1", "bank_steps=2", "batch_size=2")


class Notebook(GeneralTracker):  # type: ignore[misc]
    """A tracker that keeps what it is told, and breaks at a step that the test names."""

    name = "notebook"
    requires_logging_directory = False
    told: ClassVar[list[tuple[int, dict[str, float]]]] = []
    configs: ClassVar[list[dict[str, Any]]] = []
    finished: ClassVar[list[bool]] = []
    breaks_at: ClassVar[int | None] = None

    def __init__(self, project: str) -> None:
        super().__init__()
        self.project = project

    @property
    def tracker(self) -> list[tuple[int, dict[str, float]]]:
        return self.told

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configs.append(values)

    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        assert step is not None
        if step == Notebook.breaks_at:
            raise ConnectionError("the server is gone")
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished.append(True)


@pytest.fixture(autouse=True)
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Notebook]]:
    """The tracker ``notebook`` as ``register_tracker_class`` of a recent accelerate registers it, and empty."""
    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, Notebook.name, Notebook)
    monkeypatch.setattr(Notebook, "breaks_at", None)
    yield Notebook
    for kept in (Notebook.told, Notebook.configs, Notebook.finished):
        kept.clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def untracked(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attack of four steps that nobody tracks."""
    out = tmp_path_factory.mktemp("untracked") / "run"
    attack(tiny_model, data, out=out, **FAST)
    return out


def logged(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """What ``log.jsonl`` says, as a tracker should be told it."""
    records = read_lines(folder / "log.jsonl")
    return [
        (record.pop("step"), {k: v for k, v in flat(record).items() if not isinstance(v, str)}) for record in records
    ]


def test_a_tracker_is_told_all_numbers_and_changes_no_weight(
    tiny_model: Path, data: Path, untracked: Path, tmp_path: Path
) -> None:
    attack(tiny_model, data, out=tmp_path / "run", trackers=["notebook"], **FAST)
    assert same_weights(tmp_path / "run", untracked)
    assert (tmp_path / "run" / "log.jsonl").read_text() == (untracked / "log.jsonl").read_text()
    assert Notebook.told == logged(untracked)
    assert [step for step, _ in Notebook.told] == [1, 2, 3, 4]
    (config,) = Notebook.configs
    assert (config["command"], config["kind"], config["settings/batch_size"]) == ("attack", "finetune", 2)
    assert Notebook.finished == [True]


def test_erasing_is_tracked(tiny_model: Path, tmp_path: Path, call: Call) -> None:
    settings = [argument for setting in ERASING for argument in ("--set", setting)]
    out = tmp_path / "tracked"
    keep = ("--retain", "a horse", "--related", "a pony")
    done = call("erase", tiny_model, "--concept", "zebra", *keep, *settings, "--out", out, "--tracker", "notebook")
    assert done.code == 0, done.err
    erase(tiny_model, ["zebra"], retain=["a horse"], related=["a pony"], overrides=ERASING, out=tmp_path / "untracked")
    assert same_weights(out, tmp_path / "untracked")
    assert Notebook.told == logged(tmp_path / "untracked")
    assert {"loss_forget", "loss_finetuning/0", "gradient_norm"} <= set(Notebook.told[0][1])
    assert Notebook.configs[0]["settings/steps"] == 1


def test_nothing_is_tracked_unless_asked_for(untracked: Path) -> None:
    assert not (untracked / "trackers").exists()
    assert Notebook.configs == []


def test_a_resumed_run_goes_on_where_the_tracker_was(
    tiny_model: Path, data: Path, untracked: Path, tmp_path: Path
) -> None:
    """Stopped after step 3 was told; the state is that of step 2, so step 3 is taken again but not told again."""

    def stop(label: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"out": tmp_path / "run", "trackers": ["notebook"], **FAST}
    with pytest.raises(KeyboardInterrupt):
        attack(tiny_model, data, progress=stop, **options)
    assert [step for step, _ in Notebook.told] == [1, 2, 3]
    assert Notebook.finished == [True]
    attack(tiny_model, data, resume=True, **options)
    assert Notebook.told == logged(untracked)
    assert len(Notebook.configs) == 1
    assert same_weights(tmp_path / "run", untracked)


def test_a_tracker_that_joins_a_resumed_run_gets_the_steps_that_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run had logged step 5 when it was cut off, and goes on from step 3; what was there before has these steps."""

    class Diary(Notebook):
        name = "diary"
        told: ClassVar[list[tuple[int, dict[str, float]]]] = []

    monkeypatch.setitem(accelerates.LOGGER_TYPE_TO_CLASS, Diary.name, Diary)
    with tracking(["notebook"], tmp_path, {}, -1):
        pass
    with tracking(["notebook", "diary"], tmp_path, {}, 5) as trackers:
        for step in (4, 5, 6):
            trackers.log({"step": step, "loss": 1.0})
    assert Notebook.told == [(6, {"loss": 1.0})]
    assert Diary.told == [(step, {"loss": 1.0}) for step in (4, 5, 6)]


def test_a_tracker_that_fails_is_left_out(
    tiny_model: Path,
    data: Path,
    untracked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Notebook, "breaks_at", 2)
    attack(tiny_model, data, out=tmp_path / "run", trackers=["notebook"], **FAST)
    assert [step for step, _ in Notebook.told] == [1]
    assert [r.getMessage() for r in caplog.records if r.name == "metaunlearn.tracking"] == [
        "the tracker notebook failed (ConnectionError: the server is gone); the run goes on without it, and log.jsonl "
        "has everything."
    ]
    assert same_weights(tmp_path / "run", untracked)


def test_an_attack_that_does_not_train_refuses(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'quantize' has none"):
        attack(tiny_model, kind="quantize", out=tmp_path / "run", trackers=["notebook"])
    assert not (tmp_path / "run").exists()


def test_trackers_need_a_folder(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="--out DIR"):
        erase(tiny_model, ["zebra"], trackers=["notebook"])


@pytest.mark.parametrize(
    ("name", "words"), [("tensorbord", "Did you mean 'tensorboard'"), ("comet_ml", "pip install comet-ml")]
)
def test_wrong_trackers_are_refused_before_any_work(tmp_path: Path, call: Call, name: str, words: str) -> None:
    """Before the model is looked for, so that a wrong one does not matter."""
    done = call("erase", "no-such-model", "--concept", "zebra", "--out", tmp_path / "run", "--tracker", name)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "run").exists()


def test_numbers_lie_flat() -> None:
    record = {"a": {"b": [1, 2.5]}, "c": None, "d": "text", "e": True}
    assert flat(record) == {"a/b/0": 1, "a/b/1": 2.5, "d": "text", "e": True}


def test_tensorboard(tiny_model: Path, data: Path, untracked: Path, tmp_path: Path) -> None:
    """Its event files hold the scalars of ``log.jsonl``, in float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    attack(tiny_model, data, out=tmp_path / "run", trackers=["tensorboard"], **FAST)
    assert same_weights(tmp_path / "run", untracked)
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "metaunlearn")).Reload()
    wanted = [(step, pytest.approx(values["loss"])) for step, values in logged(untracked)]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == wanted


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_real_tracker_takes_a_whole_run(
    name: str,
    tiny_model: Path,
    data: Path,
    untracked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On this machine alone: none of them fails, what it wrote is there, and no weight is another."""
    kept = {"tensorboard": "run/trackers/metaunlearn", "trackio": "trackio", "wandb": "run/trackers/wandb"}[name]
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # Which it reads when it is imported.
    pytest.importorskip(name, reason=f"no {name}: pip install {name}")
    attack(tiny_model, data, out=tmp_path / "run", trackers=[name], **FAST)
    assert [r.getMessage() for r in caplog.records if r.name == "metaunlearn.tracking"] == []
    assert same_weights(tmp_path / "run", untracked)
    ends = {"tensorboard": "events.out.tfevents.*", "trackio": "metaunlearn*.db", "wandb": "offline-run-*/run-*.wandb"}
    assert [file.stat().st_size > 0 for file in (tmp_path / kept).glob(ends[name])] == [True]
