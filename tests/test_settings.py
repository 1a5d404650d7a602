"""What every class of settings reads alike."""

from __future__ import annotations

from typing import get_args

import pytest

from metaunlearn.attacks.lora import Lora
from metaunlearn.config import EraseSettings
from metaunlearn.erasure.uce import Uce
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import Settings, resolve

NEEDED = {EraseSettings: read_recipe("small").erase, Uce: {}, Lora: {"learning_rate": 1e-4}}


def numbers_or_none() -> list[tuple[type[Settings], str]]:
    return [
        (kind, name)
        for kind in NEEDED
        for name, field in kind.model_fields.items()
        if {type(None)} < set(get_args(field.annotation)) <= {type(None), int, float}
    ]


def test_there_are_numbers_that_may_be_left_out() -> None:
    named = [name for _, name in numbers_or_none()]
    assert {"ema_decay", "retain_guidance", "forget_guidance", "preserve_scale", "alpha"} <= set(named)


@pytest.mark.parametrize(("kind", "name"), numbers_or_none())
def test_none_takes_back_what_a_recipe_says(kind: type[Settings], name: str) -> None:
    recipe = {**NEEDED[kind], "inner_steps": 1} if kind is EraseSettings else NEEDED[kind]
    assert getattr(resolve(kind, recipe, [f"{name}=none"]), name) is None


def test_a_word_that_is_a_choice_stays_a_word() -> None:
    assert resolve(EraseSettings, NEEDED[EraseSettings], ["retain_weighting=none"]).retain_weighting == "none"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_are_finite(value: str) -> None:
    with pytest.raises(UserError, match=f"gamma2 = '{value}': .*finite"):
        resolve(EraseSettings, NEEDED[EraseSettings], [f"gamma2={value}"])


def test_what_has_no_none_refuses_it() -> None:
    with pytest.raises(UserError, match="gamma2 = 'none': input should be a valid number"):
        resolve(EraseSettings, NEEDED[EraseSettings], ["gamma2=none"])
