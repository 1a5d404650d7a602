"""The package as a whole: it imports, its public names work, its files are there, and it reads no pickles."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from packaging.licenses import canonicalize_license_expression

import metaunlearn
from metaunlearn.attacking_search import Search
from metaunlearn.attacks.registry import configure as configure_attack
from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.doctor.describing import describe
from metaunlearn.doctor.machine import OPTIONAL, REQUIRED, inspect_machine
from metaunlearn.erasure.registry import configure
from metaunlearn.recipe import read_recipe, recipe_names
from metaunlearn.settings import resolve

ROOT = Path(__file__).parents[1]
PACKAGE = Path(metaunlearn.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = [
    info.name
    for info in pkgutil.walk_packages([str(PACKAGE)], "metaunlearn.")
    if not info.name.endswith(".__main__")  # importing it would be running it
]

FORBIDDEN = {
    "pickles": r"\bimport pickle\b|\bpickle\.load|\btorch\.(load|save)\(|weights_only=False|use_safetensors=False",
    "code from a model's repository": r"trust_remote_code=True",
    "the network, but through the hub's own client": r"\b(import|from) (socket|requests|httpx|urllib\.request|http)\b",
    "evaluating text": r"(?<![\w.])(eval|exec)\(",
}


NEEDED = {"dreambooth": ["class_prompt=a toy"], "lora-merge": ["adapter=lora.safetensors"]}
"""Settings that only the user can give."""


def fresh_python(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def test_every_folder_of_modules_is_a_package() -> None:
    """Without ``__init__.py`` a folder would be left out by walk_packages, and untested above."""
    assert [folder for folder in {source.parent for source in SOURCES} if not (folder / "__init__.py").is_file()] == []


def test_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "metaunlearn.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", metaunlearn.__version__)
    assert f"## {metaunlearn.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    try:
        installed = metadata.version("metaunlearn")
    except metadata.PackageNotFoundError:
        return
    assert installed == metaunlearn.__version__


def test_public_names_are_what_they_say() -> None:
    for name in metaunlearn.__all__:
        found = getattr(metaunlearn, name)
        assert callable(found) or name == "__version__", name
    assert set(metaunlearn.__all__) <= set(dir(metaunlearn))
    with pytest.raises(AttributeError, match="no attribute 'erasure_of_everything'"):
        metaunlearn.erasure_of_everything  # noqa: B018


def test_no_submodule_hides_a_public_name() -> None:
    """Importing ``metaunlearn.x`` sets the attribute ``x`` to the module, so no public name may be one."""
    submodules = {name.split(".")[1] for name in MODULES}
    assert submodules & set(metaunlearn.__all__) == set()


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, metaunlearn; print(sorted({'torch', 'diffusers', 'pydantic', 'typer'} & set(sys.modules)))"
    assert fresh_python(code) == "[]"


def test_an_erasing_process_draws_no_charts() -> None:
    """Its card is made of the same facts as the page of results, without the page."""
    charts = "{'vl_convert', 'metaunlearn.report.charts', 'metaunlearn.report.page'}"
    assert fresh_python(f"import sys, metaunlearn.erasing; print({charts} & set(sys.modules))") == "set()"
    assert "vl_convert" in fresh_python(f"import sys, metaunlearn.report.page; print({charts} & set(sys.modules))")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_sources_do_without(what: str) -> None:
    found = [str(source.relative_to(PACKAGE)) for source in SOURCES if re.search(FORBIDDEN[what], source.read_text())]
    assert found == (["converting.py"] if what == "pickles" else [])


def test_the_one_pickle_is_read_for_its_weights_only() -> None:
    text = (PACKAGE / "converting.py").read_text()
    assert re.findall(r"torch\.load\([^)]*\)", text) == ['torch.load(file, map_location="cpu", weights_only=True)']
    assert "pickle.load" not in text


def test_recipes_hold_valid_settings() -> None:
    assert "small" in recipe_names()
    for name in recipe_names():
        recipe = read_recipe(name)
        assert recipe.description, name
        assert recipe.command.startswith("metaunlearn "), name
        if recipe.erase:
            for method in ("esd-u-1", *recipe.methods):
                configure(method, recipe)
        for kind in ("finetune", *recipe.attacks) if recipe.attack else ():
            configure_attack(kind, recipe, NEEDED.get(kind, ()))
        resolve(Search, recipe.search)


def test_every_sprite_has_a_recorded_source() -> None:
    sources = json.loads((PACKAGE / "canvas/art/sources.json").read_text())
    assert set(sources) == set(STYLES)
    for style in STYLES:
        pictures = sources[style]["pictures"]
        assert set(pictures) == set(NAMES)
        assert all(re.fullmatch(r"[0-9a-f]{64}", picture["sha256"]) for picture in pictures.values())
        assert {sprite.stem for sprite in (PACKAGE / "canvas/art" / style).glob("*.png")} == set(NAMES)


def test_notice_names_every_source() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for style in json.loads((PACKAGE / "canvas/art/sources.json").read_text()).values():
        assert style["package"] in notice


def test_the_tested_versions_fulfil_the_requirements() -> None:
    """Every direct dependency is pinned by constraints.txt, at its lower bound or above."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[1:])
    pins = {_normal(name): version for name, version in pins.items() if not name.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    for requirement in project["dependencies"] + extras:
        name, bound = requirement.split(">=")
        assert _numbers(pins[_normal(name)]) >= _numbers(bound), requirement


def test_the_doctor_looks_for_everything_that_may_be_asked_for() -> None:
    """Every dependency, and every package of the extras that are not for developers, under the extra that has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {_normal(name) for name in REQUIRED} == {_normal(item.split(">=")[0]) for item in project["dependencies"]}
    extras = {
        _normal(item.split(">=")[0]): extra
        for extra, group in project["optional-dependencies"].items()
        if extra not in ("dev", "docs", "release", "rivals")
        for item in group
    }
    assert {_normal(name): extra for name, (_, extra) in OPTIONAL.items()} == extras
    assert not {*REQUIRED} & {*OPTIONAL}


def test_the_doctor_says_what_a_missing_package_is_for() -> None:
    machine = inspect_machine()
    gone = replace(machine, optional=dict.fromkeys(machine.optional))
    lines = [line.split(maxsplit=1) for line in describe(gone, None)]
    assert ["ray", "not installed; needed for bench --ray: pip install 'metaunlearn[ray]'"] in lines
    assert ["trackio", "not installed; needed for --tracker trackio: pip install 'metaunlearn[trackers]'"] in lines


def test_trackers_can_be_started() -> None:
    """accelerate's have ``start()`` since 1.8 and Trackio since 1.9; with an older one tracking would fail quietly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(item.split(">=") for item in project["dependencies"])
    assert _numbers(bounds["accelerate"]) >= (1, 9)
    assert callable(GeneralTracker.start)
    assert "trackio" in LOGGER_TYPE_TO_CLASS


def test_the_licence_is_an_expression_of_all_that_is_in_the_wheel() -> None:
    """As NOTICE has them, by their SPDX names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = project["license"]
    assert canonicalize_license_expression(said) == said
    spdx = {"Apache License 2.0": "Apache-2.0", "CC BY 4.0": "CC-BY-4.0", "CC BY-SA 4.0": "CC-BY-SA-4.0", "MIT": "MIT"}
    named = re.findall(r"Licence: ([^,\n]+),", (ROOT / "NOTICE").read_text())
    assert {spdx[name] for name in named} == set(said.split(" AND "))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def test_nobody_is_told_to_install_what_is_not_needed() -> None:
    """transformers would: its image processors, which a pipeline's class brings along, are faster with torchvision."""
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    said = subprocess.run(
        [sys.executable, "-c", "import metaunlearn; metaunlearn.load('canvas')"],
        check=True, capture_output=True, text=True, env=environment,
    ).stderr  # fmt: skip
    assert "torchvision" not in said
