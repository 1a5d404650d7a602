"""What the documents tell the reader to type works: quick commands run here, slow ones by ``make docs-check``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
import yaml

import metaunlearn
from conftest import Call, process_environment
from fenced import PAGES, ROOT, commands, inline
from metaunlearn.cli import app
from metaunlearn.recipe import recipe_names

QUICK = sorted({command.line for command in commands("bash")})
SLOW = commands("sh")
LINES = sorted({c.line for c in [*(c for mark in ("", "bash", "sh") for c in commands(mark)), *inline()]})
WRITTEN = [line for line in LINES if line.startswith("metaunlearn ")]
SCRIPTS = [line for line in LINES if line.startswith("python benchmarks/")]
TARGETS = [line for line in LINES if line.startswith("make ")]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("line", QUICK)
def test_a_quick_command_works(line: str, call: Call) -> None:
    program, *arguments = shlex.split(line)
    assert program == "metaunlearn", "a bash block holds quick commands of metaunlearn; mark others sh, or not at all"
    done = call(*arguments)
    assert done.code == 0, done.err
    assert done.out.strip()


@pytest.mark.parametrize("line", WRITTEN)
def test_every_command_and_option_exists(line: str) -> None:
    command = typer.main.get_command(app)
    words = [word for word in shlex.split(line)[1:] if word != "..."]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert words == [] or not getattr(command, "commands", {}) or words[0].startswith("-"), words
    known = {
        "-h",
        "--help",
        *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)),
    }
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", [line for line in WRITTEN if re.search(r"^metaunlearn (bench|tune) |--recipe ", line)])
def test_every_recipe_exists(line: str) -> None:
    """But for the reader's own file and a word in capitals that stands for a name."""
    named = re.findall(r"^metaunlearn (?:bench|tune) (?!-)(\S+)|--recipe (\S+)", line)
    names = [name for pair in named for name in pair if name and not name.endswith(".toml") and not name.isupper()]
    assert [name for name in names if name not in recipe_names()] == []


@pytest.mark.parametrize("line", SCRIPTS)
def test_every_script_and_option_exists(line: str) -> None:
    _, script, *words = line.split()
    text = (ROOT / script).read_text()
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []


@pytest.mark.parametrize("line", TARGETS)
def test_every_target_exists(line: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in re.sub(r"[A-Z_]+=('[^']*'|\S+)", "", line).split()[1:] if word not in targets] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_sites_navigation() -> None:
    """And nothing else is."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_named(nav)) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:])


def _named(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in _named(part)]  # type: ignore[attr-defined]


def test_the_reference_has_every_public_name() -> None:
    """Each by the page of the module that it lives in; and every module there is one."""
    modules = re.findall(r"^::: (.+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    found = {
        name for module in modules for name, value in vars(import_module(module)).items() if _home(value) == module
    }
    assert set(metaunlearn.__all__) - found == {"__version__"}
    assert {"run_grid", "dry_run"} <= found


def _home(value: object) -> str | None:
    return getattr(value, "__module__", None)


SLURM = re.findall(
    r"^```\n(#!/bin/bash\n.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("number", range(2))
def test_the_slurm_scripts_run(number: int, tmp_path: Path) -> None:
    """With programs in the place of Slurm's, Ray's and ours that only say how they were called."""
    said, programs = tmp_path / "said", tmp_path / "programs"
    programs.mkdir()
    for name in ("srun", "ray", "metaunlearn"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {said}\n')
    (programs / "scontrol").write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    slurm = {
        "JOB_NODELIST": "n[1-2]",
        "NNODES": "2",
        "CPUS_PER_TASK": "8",
        "MEM_PER_NODE": "64000",
        "SUBMIT_DIR": "/home",
    }
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"PATH": f"{programs}:/usr/bin:/bin"}
    script = SLURM[number] + "wait\n"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=60)
    calls = said.read_text()
    assert f"metaunlearn bench table1-{('sd14', 'canvas')[number]} --out /home/runs/table1" in calls
    if number == 0:
        assert "--device cuda --ray n1:6379" in calls
        assert re.search(r"srun .*--nodelist=n1 ray start --head .*--num-cpus=8 .*--memory=57600000000 --block", calls)
        assert re.search(r"srun --nodes=1 --ntasks=1 --exclude=n1 ray start --address=n1:6379 ", calls)


def test_there_is_something_to_check() -> None:
    assert len(QUICK) >= 6
    assert len(SLOW) >= 5
    assert len(WRITTEN) >= 60
    assert len(SCRIPTS) >= 10
    assert len(TARGETS) >= 8


@pytest.mark.skipif("DOCS_CHECK" not in os.environ, reason="slow: make docs-check")
def test_slow_commands_work_in_their_order(tmp_path: Path) -> None:
    """A page's in one folder, with the command line of this very package."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / "metaunlearn"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m metaunlearn "$@"\n')
    program.chmod(0o755)
    environment = process_environment()
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    for page in dict.fromkeys(command.page for command in SLOW):
        folder = tmp_path / page.replace("/", "-")
        folder.mkdir()
        for command in (command for command in SLOW if command.page == page):
            done = subprocess.run(command.line, shell=True, cwd=folder, env=environment, check=False)
            assert done.returncode == 0, f"{page}: {command.line}"
