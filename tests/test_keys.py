"""What --set can change, as ``recipes keys`` lists it: all of it, and what it lists is what is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from conftest import Call
from installing import example
from metaunlearn.attacks.registry import KINDS
from metaunlearn.attacks.registry import configure as configure_attack
from metaunlearn.config import EraseSettings
from metaunlearn.erasure.registry import BUILT_IN, configure
from metaunlearn.errors import UserError
from metaunlearn.keys import keys_by_name
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import Key, Settings, keys_of


class Some(Settings):
    """Keys of every sort."""

    LIMIT: ClassVar = 3
    first: int
    """A number, as
    :func:`~metaunlearn.erasing.erase` and ``others`` have it."""
    second: tuple[str, ...] = ("a", "b")
    third: float | None = None
    """May be left out."""
    fourth: dict[str, int] = Field(default_factory=lambda: {"x": 1})


def test_keys_of_a_class() -> None:
    assert keys_of(Some) == [
        Key("first", "", "A number, as erase and others have it."),
        Key("second", '["a", "b"]', ""),
        Key("third", "none", "May be left out."),
        Key("fourth", "{x = 1}", ""),
    ]


@pytest.mark.parametrize("name", ["esd-u-1", *BUILT_IN])
def test_every_key_of_a_method_is_listed_once_and_its_default_is_one_that_set_takes(name: str) -> None:
    keys = [key for group in keys_by_name(name).values() for key in group]
    names = [key.name for key in keys]
    assert len({*names}) == len(names)
    own = {"subset", "eta"} if name == "esd-u-1" else set()  # The name says them.
    kind = type(configure(name, read_recipe("small")).method)
    assert {*names} == (EraseSettings.model_fields.keys() | kind.model_fields.keys()) - own
    assert [key.name for key in keys if not key.says] == []
    unread = getattr(kind, "unread", ())
    said = [f"{key.name}={key.default}" for key in keys if key.default and key.name not in unread]
    alone = [one for one in said if one.startswith(("steps", "heal_steps", "ema_decay", "accumulation", "guide"))]
    configure(name, read_recipe("small"), alone)


@pytest.mark.parametrize("name", KINDS)
def test_every_key_of_an_attack_is_listed_with_what_it_is_for(name: str) -> None:
    [keys] = keys_by_name(name).values()
    assert {key.name for key in keys} == KINDS[name].model_fields.keys()
    assert [key.name for key in keys if not key.says] == []
    said = [f"{key.name}={key.default}" for key in keys if key.default and key.name in {"batch_size", "rank"}]
    configure_attack(name, read_recipe("small"), [*said, *NEEDED.get(name, ())])


NEEDED = {
    "dreambooth": ["class_prompt=a dog"], "textual-inversion": ["initial_token=a"], "add-difference": ["donor=here"],
    "lora-merge": ["adapter=here.safetensors"],
}  # fmt: skip


def test_another_packages_attack_is_listed(packages: Path, call: Call) -> None:
    example(packages, "An attack", "metaunlearn.attacks")
    outcome = call("recipes", "keys", "shaken")
    assert "attack --kind shaken:" in outcome.out
    assert "  noise = 0.01\n      Standard deviation of what is added" in outcome.out


def test_the_command(call: Call) -> None:
    outcome = call("recipes", "keys", "sdd")
    assert outcome.out.startswith("erase --method sdd, its own:\n  subset = x\n")
    assert "\nerase, by every method:\n  steps = (the recipe says it)\n      N, outer steps.\n" in outcome.out
    found = json.loads(call("recipes", "keys", "lora", "--json").out)
    assert {"name": "rank", "default": "4", "says": "r, of the change."} in found["keys"]["attack --kind lora"]


def test_what_is_neither_is_refused(call: Call) -> None:
    outcome = call("recipes", "keys", "lra")
    assert outcome.code == 2
    assert "there is no attack 'lra' (NAME). Did you mean 'lora'?" in outcome.err
    assert "Nor a method of erasing: unknown method 'lra'" in outcome.err
    with pytest.raises(UserError, match=r"Did you mean 'sdd'"):
        keys_by_name("ssdd")
