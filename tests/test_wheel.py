"""The wheel holds every file that the package needs, and nothing else; built here, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "release"))
from contents import LIMIT, package_files, problems_of_wheel  # noqa: E402
from readme import absolute  # noqa: E402

if int(setuptools.__version__.split(".")[0]) < 77:
    pytest.skip("building needs setuptools 77 (pyproject.toml): make setup", allow_module_level=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is left among them."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, out], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_is_complete_and_nothing_else(wheel: Path) -> None:
    assert problems_of_wheel(wheel) == []


def test_what_a_user_needs_is_in_it(wheel: Path) -> None:
    """Named one by one, so that neither the sources nor the pattern that collects them can lose one unnoticed."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for needed in (
        "py.typed", "recipes/small.toml", "report/templates/report.html.j2", "bench/paper/table1_nudity_score.csv",
        "canvas/weights/pipeline/unet/diffusion_pytorch_model.safetensors", "canvas/weights/judge/model.safetensors",
        "canvas/art/noto/knife.png", "canvas/build/__main__.py",
    ):  # fmt: skip
        assert f"metaunlearn/{needed}" in names, needed
    assert {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_problems_are_named(wheel: Path, tmp_path: Path) -> None:
    """A wheel without one recipe, with a stray file, and as large as is allowed."""
    broken = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            if name != "metaunlearn/recipes/small.toml":
                new.writestr(name, old.read(name))
        new.writestr("tests/test_stray.py", bytes(LIMIT))
    lacks, stray, size = problems_of_wheel(broken)
    assert lacks == f"{wheel.name} lacks metaunlearn/recipes/small.toml"
    assert stray == f"{wheel.name} should not hold tests/test_stray.py"
    assert f"more than {LIMIT:,}" in size


def test_no_stray_file_counts_as_needed() -> None:
    assert not any("__pycache__" in name or name.endswith(".pyc") for name in package_files())


def test_the_readme_of_a_release_has_no_link_to_a_file_beside_it() -> None:
    text = absolute((ROOT / "README.md").read_text(), "https://host/owner/name", "v1.2.3")
    assert "![The top of the demo's report](https://host/owner/name/raw/v1.2.3/docs/demo-report.png)" in text
    assert "[LICENSE](https://host/owner/name/blob/v1.2.3/LICENSE)" in text
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("https://", "#"))] == []


def test_nothing_is_published_that_was_not_tested() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert [jobs[name].get("needs") for name in ("publish", "build", "test")] == ["build", "test", None]
    assert {"run": "make test"} in jobs["test"]["steps"]
