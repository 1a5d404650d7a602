"""What the documents tell the reader to type works: quick commands run here, slow ones by ``make docs-check``."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from conftest import Call, process_environment
from fenced import PAGES, ROOT, commands
from metaunlearn.cli import app

QUICK = sorted({command.line for command in commands("bash")})
SLOW = commands("sh")
WRITTEN = sorted({c.line for mark in ("", "bash", "sh") for c in commands(mark) if c.line.startswith("metaunlearn ")})
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_there_is_something_to_check() -> None:
    assert len(QUICK) >= 6
    assert len(SLOW) >= 5
    assert len(WRITTEN) >= 20


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
