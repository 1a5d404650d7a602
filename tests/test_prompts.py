"""Reading prompts from text, CSV and JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaunlearn.data.prompts import Prompt, prompt_of, read_prompts
from metaunlearn.errors import UserError


def read(folder: Path, name: str, content: str) -> list[Prompt]:
    (folder / name).write_text(content, encoding="utf-8")
    return read_prompts(folder / name)


def test_text_file(tmp_path: Path) -> None:
    prompts = read(tmp_path, "p.txt", "\ufeffa cat\n\n# a comment\n  a dog, sitting  \n")
    assert prompts == [Prompt("a cat"), Prompt("a dog, sitting")]


def test_csv_with_the_columns_of_i2p(tmp_path: Path) -> None:
    content = ',prompt,categories,sd_seed,sd_guidance_scale\n0,"a, b\nc",x,2184669,7\n1,d,x,,\n'
    assert read(tmp_path, "p.csv", content) == [Prompt("a, b\nc", seed=2184669, guidance_scale=7.0), Prompt("d")]


def test_jsonl_with_every_column(tmp_path: Path) -> None:
    content = (
        '{"prompt": "a cat", "seed": 9007199254740993, "guidance_scale": 0, "label": "cat"}\n\n'
        '{"text": "a\u2028dog", "seed": 3.0}\n'
    )
    assert read(tmp_path, "p.jsonl", content) == [
        Prompt("a cat", seed=9007199254740993, guidance_scale=0.0, label="cat"),
        Prompt("a\u2028dog", seed=3),
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", "\n# only this\n", "holds no prompts"),
        ("p.csv", "", "holds no prompts"),
        ("p.csv", "prompt,seed\n", "holds no prompts"),
        ("p.csv", "caption,seed\na,1\n", "no column 'prompt'; found: caption, seed"),
        ("p.csv", "prompt,seed\na,1\nb,1.5\n", "line 3: a seed is a whole number"),
        ("p.csv", "prompt,seed\na,-1\n", "line 2: a seed"),
        ("p.csv", "seed,prompt\n1\n", "line 2: 'prompt' is missing"),
        ("p.csv", "prompt,guidance_scale\na,nan\n", "line 2: a guidance scale"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", '["a"]\n', "line 1: expected an object"),
        ("p.jsonl", '{"caption": "a"}\n', "line 1: 'prompt' is missing or empty; found: caption"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "a seed is a whole number"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": -2}\n', "a guidance scale"),
        ("p.yaml", "a", "must end in .txt, .csv, .json, .jsonl"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, name, content)
    assert told in str(caught.value)
    assert "p." in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="UTF-8"):
        read_prompts(tmp_path / "bytes.txt")


def test_the_largest_seed() -> None:
    assert prompt_of({"prompt": "a", "seed": 2**63 - 1}, "here").seed == 2**63 - 1
    with pytest.raises(UserError, match="a seed is a whole number"):
        prompt_of({"prompt": "a", "seed": 2**63}, "here")
