"""What another library's error is quoted as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from metaunlearn.cli.options import check_device
from metaunlearn.errors import UserError, first_line
from metaunlearn.making import make_set


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
