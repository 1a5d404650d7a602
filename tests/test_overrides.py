"""What is said over a recipe's settings, on the command line and in Python."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import read_lines
from metaunlearn import attacks, erasure
from metaunlearn.config import EraseSettings
from metaunlearn.doctor.estimating import estimate
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError
from metaunlearn.overrides import as_overrides, as_toml, parse_overrides
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve

SMALL = read_recipe("small")


def test_a_mapping_says_what_texts_do() -> None:
    said = {
        "steps": 5, "stratified": False, "gamma2": np.float64(2.5), "seed": np.int64(3), "rate": torch.tensor(0.5),
        "ema_decay": None, "meta_gradient": "first-order", "guide": ["a dog", "a \"big\" cat, 🐈"],
    }  # fmt: skip
    assert as_overrides(said) == [
        "steps=5", "stratified=false", "gamma2=2.5", "seed=3", "rate=0.5", "ema_decay=none",
        "meta_gradient=first-order", r'guide=["a dog", "a \"big\" cat, 🐈"]',
    ]  # fmt: skip
    assert as_overrides(["steps=5", "a=b"]) == ["steps=5", "a=b"]
    assert as_overrides("steps=5") == ["steps=5"]


def test_blanks_around_what_is_said_do_not_count() -> None:
    assert parse_overrides([" inner_subset = first-xattn "]) == {"inner_subset": "first-xattn"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"guide": ["a dog", "a \"big\" cat, 🐈"]}, ("a dog", 'a "big" cat, 🐈')),
        ({"guide": ("a dog",)}, ("a dog",)),
        ({"guide": "a dog, a cat"}, ("a dog", "a cat")),
        (['guide=["a dog, sitting"]'], ("a dog, sitting",)),
        (["guide="], ()),
        ({"guide": []}, ()),
    ],
)  # fmt: skip
def test_a_list_stays_the_list_it_was(said: Any, expected: tuple[str, ...]) -> None:
    """Also on its way through ``key=value``: a comma inside one of its texts parts nothing."""
    chosen: Any = erasure.registry.configure("esd-u-1", SMALL, as_overrides(said)).method
    assert chosen.guide == expected


def test_other_lists_do_too() -> None:
    lora: Any = attacks.registry.configure("lora", SMALL, as_overrides({"targets": ["to_q", "to_k"]})).kind
    assert lora.targets == ("to_q", "to_k")
    words = as_overrides({"templates": ["{}, drawn", "a | b {}"]})
    inversion: Any = attacks.registry.configure("textual-inversion", SMALL, words).kind
    assert inversion.templates == ("{}, drawn", "a | b {}")
    mixture = [{"optimizer": "sgd", "learning_rate": 1e-5, "steps": 1}]
    found = resolve(EraseSettings, SMALL.erase, as_overrides({"attackers": mixture}))
    assert [attacker.model_dump() for attacker in found.attackers] == mixture


def test_a_list_that_is_broken_off_is_refused() -> None:
    with pytest.raises(UserError, match=r'guide = .*expected a list, \["A", "B"\]'):
        erasure.registry.configure("esd-u-1", SMALL, ['guide=["a dog'])


def test_what_is_no_setting_is_refused() -> None:
    for said in (["steps"], [5], [None]):
        with pytest.raises(UserError, match="takes key=value"):
            resolve(EraseSettings, SMALL.erase, as_overrides(said))  # type: ignore[arg-type]


def test_words_may_be_left_out_like_numbers() -> None:
    dreambooth: Any = attacks.registry.configure(
        "dreambooth", SMALL, as_overrides({"class_prompt": "a dog", "instance_prompt": None})
    ).kind
    assert dreambooth.instance_prompt is None


def test_python_takes_either(tiny_model: Path, tmp_path: Path) -> None:
    """One and the same request, so that the second finds the first's run complete."""
    said: dict[str, Any] = {
        "steps": 1,
        "batch_size": 2,
        "bank_trajectories": 1,
        "bank_steps": 2,
        "forget_images": 2,
        "retain_images": 2,
    }
    for overrides in (said, as_overrides(said)):
        erase(tiny_model, ["zebra"], out=tmp_path / "one", meta=False, overrides=overrides, resume=True)
    assert len(read_lines(tmp_path / "one" / "log.jsonl")) == 1
    assert estimate(tiny_model, overrides={"batch_size": 2}).settings.batch_size == 2


@pytest.mark.parametrize("value", ["a\x7fb", 'tab\t "quoted" ü', {"a b": 1, "plain": {"x.y": [True, "z"]}}])
def test_a_value_is_said_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"key = {as_toml(value)}") == {"key": value}
