"""What another library's error is quoted as, and which names a hint offers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from metaunlearn.devices import check_device
from metaunlearn.errors import UserError, did_you_mean, first_line
from metaunlearn.making import make_set
from metaunlearn.recipe import read_recipe


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("no such file.\nTry another."), "no such file"),
        (OSError("\n  it is gone  \n"), "it is gone"),
        (EOFError(), "EOFError"),
        (RuntimeError("  \n"), "RuntimeError"),
    ],
    ids=["two lines", "blank lines", "no words", "only blanks"],
)
def test_first_line(error: Exception, says: str) -> None:
    assert first_line(error) == says


def test_errors_without_words_are_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wordless(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", wordless)
    with pytest.raises(UserError, match=r"cannot be loaded: OSError\. Expected"):
        make_set("snoopy", tmp_path / "set", generator="somewhere")

    def unknown(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch, "empty", unknown)
    with pytest.raises(UserError, match=r"no device 'abacus' here: NotImplementedError\. Try cpu"):
        check_device("abacus")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("table1", " Did you mean 'table1-canvas' or 'table1-sd14'?"),
        ("Table1", " Did you mean 'table1-canvas' or 'table1-sd14'?"),
        ("smal", " Did you mean 'small'?"),
        ("table1-sd15", " Did you mean 'table1-sd14'?"),
        ("nothing like it", ""),
        ("", ""),
    ],
    ids=["both sizes", "capital", "the closest of many", "a typing error", "nothing", "no word"],
)
def test_a_hint_prefers_names_that_begin_with_the_word(word: str, hint: str) -> None:
    """``table5-sd14`` is as like ``table1`` as ``table1-sd14`` is, letter by letter."""
    known = [
        "table5-sd14", "table1-canvas", "table1-sd14", "small", "small-quick", "small-unbounded",
        "small-quick-unbounded",
    ]  # fmt: skip
    assert did_you_mean(word, known) == hint


def test_a_grid_without_its_size_is_answered_with_both() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'table1-canvas' or 'table1-sd14'\?"):
        read_recipe("table1")
