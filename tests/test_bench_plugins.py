"""Keys hold what other packages do in a cell: a method of theirs, also below IMMA, an attack, a metric, and an
optimiser's arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench_grids import changed, plan_of
from installing import install, template
from metaunlearn import plugins
from metaunlearn.bench import cells
from metaunlearn.bench.cells import Cell
from metaunlearn.bench.recipe import Grid
from metaunlearn.bench.resolved import check_packages
from metaunlearn.bench.scores_asked import check_scores
from metaunlearn.errors import UserError
from metaunlearn.settings import resolve

PLAIN = changed("models", to=["unlearn"])
THEIRS = changed("methods", to=["mine"], of=PLAIN)
BELOW = {**PLAIN, "methods": ["imma"], "set": {"base": "mine"}}
ATTACKED = changed("attacks", to=[{"name": "theirs", "kind": "shaken", "data": "hrm-m"}], of=PLAIN)
MEASURED = {
    **PLAIN,
    "measure": None,
    "prompts": [{"name": "concept", "texts": ["a knife"], "scores": {"colour": "colourfulness"}}],
}
METHOD = """
from metaunlearn.settings import Settings

class Mine(Settings):
    def trained(self): ...
    def begin(self): ...
"""


def erased(grid: dict[str, Any]) -> Cell:
    [cell] = [cell for cell in plan_of(grid).cells.values() if cell.kind == "erase"]
    return cell


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the package ``theirs``, whose method ``mine`` is built from a second file."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metaunlearn.methods]\nmine = theirs.method:Mine\n")
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    for name, text in {"__init__": "", "method": METHOD, "deep/losses": "x = 1\n"}.items():
        (tmp_path / "theirs" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    plugins.package_hash.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]
    plugins.package_hash.cache_clear()


@pytest.mark.parametrize("grid", [THEIRS, BELOW])
def test_another_packages_method_is_all_of_its_package(grid: dict[str, Any], site: Path) -> None:
    """Not its own file alone; under IMMA as well as by itself."""
    before = erased(grid)
    assert erased(grid).name == before.name
    (site / "theirs" / "notes.txt").write_text("no code")
    (site / "theirs" / "deep" / "losses.py").write_text("x = 2\n")
    plugins.package_hash.cache_clear()
    after = erased(grid)
    assert after.name != before.name
    assert after.spec["packages"]["mine"][1:] == ["theirs 1.0"]
    (site / "theirs" / "deep" / "losses.py").write_text("x = 1\n")
    plugins.package_hash.cache_clear()
    assert erased(grid).name == before.name


def test_a_methods_package_has_a_version(site: Path) -> None:
    """What it compiles, say, is no Python file."""
    before = erased(THEIRS)
    metadata = site / "theirs-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert erased(THEIRS).name != before.name


def test_a_module_by_itself_is_a_package(site: Path) -> None:
    (site / "theirs" / "method.py").rename(site / "alone.py")
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[metaunlearn.methods]\nmine = alone:Mine\n")
    before = erased(THEIRS)
    (site / "alone.py").write_text(METHOD + "x = 2\n")
    plugins.package_hash.cache_clear()
    assert erased(THEIRS).name != before.name
    del sys.modules["alone"]


@pytest.mark.parametrize(
    ("grid", "of", "kind", "read"),
    [
        (ATTACKED, "An attack", "attack", lambda spec: spec["packages"]["shaken"]),
        (MEASURED, "A metric", "evaluate", lambda spec: spec["sets"][0]["packages"]["colourfulness"]),
    ],
)
def test_another_packages_attack_and_metric_are_their_packages(
    grid: dict[str, Any], of: str, kind: str, read: Callable[[Mapping[str, Any]], list[str]], packages: Path
) -> None:
    """The cells that they make or measure, and no other."""
    entries, source = template(of)
    [(_, target)] = entries.items()
    package = target.partition(":")[0]
    install(packages, package, entries, source, group=f"metaunlearn.{of.split()[1]}s")
    plugins.package_hash.cache_clear()
    before = plan_of(grid).cells
    (packages / f"{package}.py").write_text(source + "x = 1\n")
    plugins.package_hash.cache_clear()
    after = plan_of(grid).cells
    [cell, *_] = [cell for name, cell in after.items() if cell.kind == kind and name not in before]
    check_packages(cell)
    (packages / f"{package}.py").write_text(source)
    plugins.package_hash.cache_clear()
    with pytest.raises(UserError, match=rf"{next(iter(entries))} is of \['.*', '{package} 1.0'\], not "):
        check_packages(cell)
    told = [read(cell.spec) for cell in after.values() if cell.kind == kind and cell.labels.get("attack") != "before"]
    assert told
    assert all(code[1:] == [f"{package} 1.0"] for code in told)
    changed_kinds = {after[name].kind for name in after.keys() - before.keys()}
    assert changed_kinds == {kind} | ({"measure"} if kind == "attack" else set())


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({"concept": "colourfulness"}, "percentages of the pictures .* give 'colourfulness' a name of its own"),
        ({"colour": "colourfulness:fine"}, "'colourfulness' .* has no variants"),
        ({"concept": "concept:fine"}, "'concept' .* has no variants"),
        ({"clip": "clip-score:nonsense"}, "nonsense"),
        ({"colour": "colourfullness"}, "no metric 'colourfullness'.*mean 'colourfulness'"),
    ],
)
def test_scores_that_cannot_be_are_refused_before_anything_is_trained(
    scores: dict[str, str], says: str, packages: Path
) -> None:
    entries, source = template("A metric")
    install(packages, "my_metric", entries, source, group="metaunlearn.metrics")
    prompts = [{"name": "concept", "texts": ["a knife"], "scores": scores}]
    with pytest.raises(UserError, match=says):
        check_scores(resolve(Grid, {**MEASURED, "prompts": prompts}).prompts)


def test_of_our_own_methods_the_code_is_in_the_key_already() -> None:
    assert "packages" not in erased(PLAIN).spec


@pytest.mark.parametrize(
    "grid",
    [
        changed("set", "outer_optimizer", to="adamw-8bit", of=PLAIN),
        {**BELOW, "set": {"base": "esd-x-1", "base_set": "outer_optimizer=adamw-8bit"}},
    ],
)
def test_an_8_bit_optimisers_package_is_part_of_the_key(grid: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no other erasing's: a plain run's key stays whatever is installed."""
    before, plain, version = erased(grid), erased(PLAIN), cells._version
    assert set(before.packages) - set(plain.packages) == {"bitsandbytes"}
    monkeypatch.setattr(cells, "_version", lambda name: "0" if name == "bitsandbytes" else version(name))
    assert erased(grid).name != before.name
    assert erased(PLAIN).name == plain.name
