"""What a recipe leaves when it extends another: tables by method, whatever each file calls the method."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaunlearn.erasure.names import ESD_NAME, one_name
from metaunlearn.erasure.registry import ALIASES, BUILT_IN, configure, find
from metaunlearn.errors import UserError
from metaunlearn.parameters import SUBSETS
from metaunlearn.recipe import RecipeFile, read_recipe


def written(folder: Path, name: str, text: str) -> str:
    """A recipe's path."""
    path = folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("spelling", ["uce", "uce-2023"])
def test_a_table_goes_over_the_inherited_one_whatever_the_spelling(tmp_path: Path, spelling: str) -> None:
    """sd14 has 100 steps and no retain term there, and 1,000 steps and 0.2 for all methods."""
    own = written(tmp_path, "own", f'extends = "sd14"\n[methods.{spelling}]\nerase_scale = 0.5\n')
    chosen = configure("uce", read_recipe(own))
    assert chosen.method_settings["erase_scale"] == 0.5
    assert (chosen.settings.steps, chosen.settings.retain_weight) == (100, 0.0)


def test_a_number_may_be_written_otherwise(tmp_path: Path) -> None:
    own = written(tmp_path, "own", 'extends = "sd14"\n[methods."esd-u-3.0"]\nsteps = 5\n')
    chosen = configure("esd-u-3", read_recipe(own))
    assert (chosen.settings.steps, chosen.settings.gamma2) == (5, 0.1)


def test_the_later_file_holds_over_two_spellings(tmp_path: Path) -> None:
    """Three keys of uce-2023; two of them again, of uce; one of those again, of uce-2023."""
    first = written(
        tmp_path, "first",
        'extends = "sd14"\n[methods.uce-2023]\nerase_scale = 1.0\nanchor_scale = 1.0\npreserve_scale = 1.0\n',
    )  # fmt: skip
    second = written(tmp_path, "second", f'extends = "{first}"\n[methods.uce]\nerase_scale = 2.0\nanchor_scale = 2.0\n')
    third = written(tmp_path, "third", f'extends = "{second}"\n[methods.uce-2023]\nerase_scale = 3.0\n')
    found = configure("uce", read_recipe(third)).method_settings
    assert [found[f"{name}_scale"] for name in ("erase", "anchor", "preserve")] == [3.0, 2.0, 1.0]


def test_two_tables_of_one_method_in_one_file_are_refused(tmp_path: Path) -> None:
    twice = written(tmp_path, "twice", 'extends = "sd14"\n[methods.uce]\nsteps = 1\n[methods.uce-2023]\nsteps = 2\n')
    with pytest.raises(UserError, match=r"twice\.toml: \[methods\.uce\] and \[methods\.uce-2023\] are one method's"):
        read_recipe(twice)
    with pytest.raises(ValueError, match=r'\[methods\.esd-u-3\] and \[methods\."esd-u-3\.0"\] are one method\'s'):
        RecipeFile(methods={"esd-u-3": {}, "esd-u-3.0": {}})


def test_the_names_are_the_registrys() -> None:
    for subset in SUBSETS:
        assert find(f"esd-{subset}-3.0").name == one_name(f"esd-{subset}-3.0") == f"esd-{subset}-3"
        assert ESD_NAME.fullmatch(f"esd-{subset}-0.5")
    assert [one_name(name) for name in ("esd-u-10", "esd-u-0.00001", "sdd")] == ["esd-u-10", "esd-u-0.00001", "sdd"]
    assert {find(name).name for name in ALIASES} <= {*BUILT_IN}
