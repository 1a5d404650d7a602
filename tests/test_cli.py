"""The command line: what it passes on, what it prints, its exit codes; test_cli_refuses.py has the bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageChops
from safetensors import SafetensorError

from conftest import TINY_SIZE, Call, Outcome, read_lines
from metaunlearn.cli import launching
from metaunlearn.cli.console import print_failure
from metaunlearn.cli.errors import RESUMABLE, Failure, failure
from metaunlearn.cli.options import names, parse_numbers, parse_steps
from metaunlearn.cli.tables import figure, scores_table
from metaunlearn.errors import RunError, UserError
from metaunlearn.processes import ALONE

COMMANDS = (
    "demo", "erase", "attack", "generate", "evaluate", "report", "recipes", "doctor", "data", "table", "compare",
    "rescore", "convert", "tune",
)  # fmt: skip


# --- Help ------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """``--help`` of everything, in one new interpreter: torch alone would take seconds."""
    commands = [(), *((command,) for command in COMMANDS), ("recipes", "copy"), ("data", "make")]
    code = (
        "import sys\n"
        "from metaunlearn.cli import main\n"
        f"codes = [main([*command, '--help']) for command in {commands}]\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'exit codes {codes}, imported {heavy}' if any(codes) or heavy else 0)"
    )
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=source, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    for option in ("--concept", "--no-meta", "--set", "--resume", "--json", "--judge", "--steps", "--prompts"):
        assert option in done.stdout


def test_version(call: Call) -> None:
    assert call("--version") == Outcome(0, "metaunlearn 0.1.0\n", "")


# --- What is passed on, what is printed ------------------------------------------------------------------------------


def test_erase_passes_everything_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def erase(model: str, concepts: list[str], **options: Any) -> SimpleNamespace:
        seen.update(options, model=model, concepts=concepts)
        return SimpleNamespace(summary={"method": options["method"]})

    monkeypatch.setattr("metaunlearn.erasing.erase", erase)
    out = tmp_path / "out"
    outcome = call(
        *("erase", "canvas", "--concept", "knife|blade", "--concept", "axe", "--method", "esd-x-3", "--no-meta"),
        *("--retain", "a dog", "--related", "a saw", "--forget-data", "f", "--retain-data", "r", "--recipe", "small"),
        *("--set", "steps=3", "--set", "gamma1=2", "--seed", 7, "--resume", "--out", out, "--json"),
        *("--delta", "--push", "somebody/canvas"),
    )
    assert outcome.code == 0
    assert json.loads(outcome.out) == {"out": str(out), "method": "esd-x-3"}
    assert outcome.err == ""
    assert seen.pop("progress") is None
    assert seen == {
        "model": "canvas",
        "concepts": ["knife|blade", "axe"],
        "method": "esd-x-3",
        "meta": False,
        "retain": ["a dog"],
        "related": ["a saw"],
        "forget_data": Path("f"),
        "retain_data": Path("r"),
        "recipe": "small",
        "overrides": ["steps=3", "gamma1=2"],
        "seed": 7,
        "device": "cpu",
        "out": out,
        "resume": True,
        "delta": True,
        "trackers": (),
        "processes": ALONE,
        "push": "somebody/canvas",
    }


def test_attack_passes_everything_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def attack(model: str, data: Path, **options: Any) -> SimpleNamespace:
        seen.update(options, model=model, data=data)
        options["progress"]("finetuning", 5, 5)
        return SimpleNamespace(checkpoints={5: tmp_path / "step-000005"}, summary={"kind": "finetune"})

    monkeypatch.setattr("metaunlearn.attacking.attack", attack)
    outcome = call("attack", "model", "--data", "data", "--steps", "0, 5", "--out", tmp_path)
    assert outcome == Outcome(0, f"after 5 steps: {tmp_path / 'step-000005'}\n", "finetuning: 5/5\n")
    assert (seen["model"], seen["data"], seen["steps"], seen["kind"]) == ("model", Path("data"), (0, 5), "finetune")
    assert seen["overrides"] == ()


def test_json_keeps_stdout_clean(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a library prints goes to stderr; what this package logs does, too."""

    def build(folder: Path) -> Path:
        import logging

        print("chatter")
        logging.getLogger("metaunlearn.report").warning("%d things were left out", 2)
        return folder / "report.html"

    monkeypatch.setattr("metaunlearn.report.page.build_report", build)
    outcome = call("report", tmp_path, "--json")
    assert json.loads(outcome.out) == {"report": str(tmp_path / "report.html")}
    assert outcome.err == "chatter\nwarning: 2 things were left out\n"


def test_demo_prints_a_table_and_the_report(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def state(concept: float) -> dict[str, Any]:
        return {"concept": [concept, max(0.0, concept - 5), concept + 5], "related": [90.0, 85.0, 95.0]}

    def model(before: float, after: float) -> dict[str, Any]:
        return {"before": state(before), "malicious": {"50": state(after)}}

    models = {"original": {"before": state(90)}, "unlearn": model(2, 60), "meta-unlearn": model(1, 20)}
    monkeypatch.setattr(
        "metaunlearn.story.demo", lambda out, **_: {"concept": "knife", "seconds": 1.0, "models": models}
    )
    outcome = call("demo", "--out", tmp_path)
    assert outcome.code == 0
    assert "60.0 [55.0, 65.0]" in outcome.out
    assert "meta-unlearn, malicious, 50 steps" in outcome.out
    assert outcome.out.endswith(f"report: {tmp_path / 'report.html'}\n")
    assert max(map(len, outcome.out.splitlines()[2:])) <= 120


def test_recipes(call: Call, tmp_path: Path) -> None:
    assert "small" in json.loads(call("recipes", "list", "--json").out)["recipes"]
    text = call("recipes", "show", "small").out
    copied = tmp_path / "mine.toml"
    assert call("recipes", "copy", "small", "--out", copied).code == 0
    assert copied.read_text().rstrip() == text.rstrip()
    again = call("recipes", "copy", "small", "--out", copied)
    assert again.code == 2
    assert "exists already" in again.err
    assert "Did you mean 'small'" in call("recipes", "show", "smal").err


def test_doctor_says_what_is_installed(call: Call) -> None:
    facts = json.loads(call("doctor", "--json").out)
    assert facts["job"] is None
    assert set(facts["machine"]["packages"]) >= {"torch", "diffusers", "transformers"}


def test_figures() -> None:
    assert figure(12.04, 8.1, 17.2) == "12.0 [8.1, 17.2]"
    assert figure(12.04, None, None) == "12.0"
    table = scores_table({"fid": {"value": 3.25, "low": 1, "high": 5, "n": 200}})
    assert table.split("\n")[-1].split() == ["fid", "3.2", "[1.0,", "5.0]", "200"]


# --- Drawing, for real -----------------------------------------------------------------------------------------------


def test_generate(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    """Two pictures of each prompt, reproducible one by one, in a folder that --data takes."""
    out = tmp_path / "out"
    arguments = ("generate", tiny_model, "--prompt", "a knife", "--prompt", "a dog", "--images", 2, "--seed", 5)
    first = call(*arguments, "--out", out, "--json")
    assert first.code == 0, first.err
    assert json.loads(first.out)["images"] == 4
    rows = read_lines(out / "metadata.jsonl")
    assert [row["text"] for row in rows] == ["a knife", "a knife", "a dog", "a dog"]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (2 * TINY_SIZE + 4, 2 * TINY_SIZE + 4)
    assert json.loads((out / "run.json").read_text())["status"] == "complete"

    # The second picture of "a knife" has seed 6, whatever is drawn beside it.
    alone = tmp_path / "alone"
    assert call("generate", tiny_model, "--prompt", "a knife", "--seed", 6, "--out", alone).code == 0
    assert largest_difference(alone / "000000.png", out / rows[1]["file_name"]) <= 1  # a batch may round otherwise
    assert largest_difference(alone / "000000.png", out / rows[0]["file_name"]) > 10

    assert call(*arguments, "--out", out).code == 2
    before = (out / rows[0]["file_name"]).stat().st_mtime_ns
    assert json.loads(call(*arguments, "--out", out, "--resume", "--json").out)["images"] == 4
    assert (out / rows[0]["file_name"]).stat().st_mtime_ns == before


def test_generate_with_other_steps_and_guidance(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    """They go before the prompts' own and the model's, are on record, and make other pictures."""
    (tmp_path / "prompts.csv").write_text("prompt,guidance_scale\na knife,7.5\na dog,\n")
    arguments = ("generate", tiny_model, "--prompts", tmp_path / "prompts.csv")
    asked = {"own": (), "steps": ("--steps", 6), "guidance": ("--guidance", 1)}
    for name, more in asked.items():
        assert call(*arguments, *more, "--out", tmp_path / name).code == 0
    requests = {name: json.loads((tmp_path / name / "run.json").read_text())["request"] for name in asked}
    assert {name: request["steps"] for name, request in requests.items()} == {"own": 3, "steps": 6, "guidance": 3}
    scales = {name: [image[2] for image in request["images"]] for name, request in requests.items()}
    assert scales == {"own": [7.5, 2.0], "steps": [7.5, 2.0], "guidance": [1.0, 1.0]}
    for name in ("steps", "guidance"):
        assert largest_difference(tmp_path / "own" / "000000.png", tmp_path / name / "000000.png") > 1
    refused = call(*arguments, "--guidance", -1, "--out", tmp_path / "refused")
    assert refused.code == 2
    assert not (tmp_path / "refused").exists()


def largest_difference(one: Path, other: Path) -> int:
    """Between two pictures of one size, in levels of 0 to 255."""
    with Image.open(one) as a, Image.open(other) as b:
        return max(high for _, high in ImageChops.difference(a, b).getextrema())


# --- Exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "exit_code", "says"),
    [
        (UserError("wrong"), 2, "wrong"),
        (RunError("broke"), 1, "broke"),
        (KeyboardInterrupt(), 130, "metaunlearn erase canvas --resume"),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), 1, "pip install peft"),
        (MemoryError("8 GB"), 1, "batch_size"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "batch_size"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x"),
        (ValueError("odd"), 1, "metaunlearn --debug erase canvas"),
    ],
)
def test_every_exception_has_a_message_and_a_code(error: BaseException, exit_code: int, says: str) -> None:
    found = failure(error, ["erase", "canvas"])
    assert found.exit_code == exit_code
    assert says in found.message


def test_a_full_disk_is_the_file_systems_refusal() -> None:
    """safetensors has one exception for that and for a broken file."""
    full = SafetensorError("Error while serializing: IoError(Os { code: 28 }): No space left on device (os error 28)")
    assert failure(full, ["erase"]).message.startswith("the file system refused: ")
    assert "not expected" in failure(SafetensorError("invalid header"), ["erase"]).message


def test_a_number_of_processes_without_a_place_among_them_is_no_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK", raising=False)
    assert (launching.count(), launching.number(), launching.first_here()) == (1, 0, True)


@pytest.mark.parametrize(("exit_code", "said"), [(1, "metaunlearn (process 1 of 2): no"), (2, "")])
def test_beside_the_main_process_a_wrong_call_is_not_said_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exit_code: int, said: str
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    print_failure(Failure("no", exit_code), as_json=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", said)


@pytest.mark.parametrize(
    ("command", "has", "lacks"),
    [
        ("erase", ["picture_batch", "batch_size", "meta_gradient"], []),
        ("attack", ["batch_size", "gradient_checkpointing"], ["picture_batch"]),
        ("generate", ["picture_batch"], ["lower batch_size"]),
        ("evaluate", ["picture_batch"], ["lower batch_size"]),
    ],
)
def test_out_of_memory_names_what_the_command_has(command: str, has: list[str], lacks: list[str]) -> None:
    found = failure(MemoryError("8 GB"), ["--debug", command, "canvas"]).message
    assert all(f"--set {key}=" in found for key in has)
    assert not any(words in found for words in lacks)


def test_what_to_do_next_goes_by_the_command_and_not_by_another_word() -> None:
    """A concept, a folder or an argument may be called like a command."""
    go_on = failure(KeyboardInterrupt(), ["--debug", "erase", "canvas", "--concept", "bench"]).message
    assert go_on.endswith("--concept bench --resume")
    assert failure(KeyboardInterrupt(), ["report", "erase"]).message == "interrupted."
    assert failure(KeyboardInterrupt(), ["data", "make", "clean"]).message.endswith("data make clean --resume")
    assert "picture_batch" not in failure(MemoryError("8 GB"), ["report", "generate"]).message


def test_interrupting_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metaunlearn.story.demo", interrupted)
    outcome = call("demo", "--out", tmp_path / "with space")
    assert outcome.code == 130
    assert f"metaunlearn demo --out '{tmp_path / 'with space'}' --resume" in outcome.err


def test_resumable_commands_have_the_option(call: Call) -> None:
    for command in COMMANDS:
        assert ("--resume" in call(command, "--help").out) == (command in RESUMABLE), command


@pytest.mark.parametrize("command", ["attack", "evaluate", "generate"])
def test_help_names_every_kind_of_prompts_file_that_is_read(call: Call, command: str) -> None:
    assert ".txt, .csv, .json or .jsonl" in " ".join(call(command, "--help").out.split())


def test_the_traceback_is_shown_on_demand_only(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path) -> Path:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("metaunlearn.report.page.build_report", broken)
    quiet = call("report", tmp_path)
    assert quiet.code == 1
    assert "Traceback" not in quiet.err
    assert "ZeroDivisionError: a defect" in quiet.err
    assert "Traceback" in call("--debug", "report", tmp_path).err
    monkeypatch.setenv("METAUNLEARN_DEBUG", "1")
    assert "Traceback" in call("report", tmp_path).err


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("erase",),
        ("erase", "canvas", "--out", "x"),
        ("generate", "canvas", "--prompt", "a", "--images", "0", "--out", "x"),
        ("generate", "canvas", "--prompt", "a", "--seed", "-1", "--out", "x"),
        ("generate", "canvas", "--out", "x"),
        ("generate", "canvas", "--prompt", "a", "--prompts", "b.txt", "--out", "x"),
        ("recipes", "show", "nothing like it"),
    ],
    ids=" ".join,
)
def test_wrong_calls_exit_with_2_and_say_so_in_json(call: Call, arguments: tuple[str, ...]) -> None:
    outcome = call(*arguments, "--json")
    assert outcome.code == 2
    record = json.loads(outcome.out)
    assert record["exit_code"] == 2
    assert record["error"] in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("text", ["", "-5", "0,-5", "5.5", "a", "50,0", "0,0", "0,,5", "²"])
def test_steps_are_ascending_whole_numbers(text: str) -> None:
    with pytest.raises(UserError, match="--steps"):
        parse_steps(text)


def test_steps_and_names() -> None:
    assert parse_steps("0, 50,100") == (0, 50, 100)
    assert names("concept, fid,") == ["concept", "fid"]


def test_strengths_are_finite_numbers_from_0_on() -> None:
    assert parse_numbers("0, 0.25,1") == (0.0, 0.25, 1.0)
    for text in ("inf", "1,nan", "-0.5", "", "1,,2"):
        with pytest.raises(UserError, match="strengths must be numbers of at least 0"):
            parse_numbers(text)


# --- A run that breaks down -----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_fails_the_run(call: Call, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """A first step of 1e30 makes the second loss infinite: exit code 1, the step named, what came before kept."""
    out = tmp_path / "out"
    arguments = (
        "attack",
        tiny_model,
        "--data",
        pictures,
        "--steps",
        "0,3",
        "--set",
        "learning_rate=1e30",
        "--out",
        out,
    )
    outcome = call(*arguments, "--json")
    assert outcome.code == 1
    assert "not finite at step 2" in json.loads(outcome.out)["error"]
    assert (out / "step-000000" / "model_index.json").is_file()
    assert not (out / "step-000003").exists()
    assert call("generate", out / "step-000000", "--prompt", "a knife", "--out", tmp_path / "drawn").code == 0
