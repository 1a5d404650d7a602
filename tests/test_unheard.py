"""What a call says and its run would not read: refused from Python and on the command line, passed over in a grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Call, same_weights
from metaunlearn.bench.kinds.erase import make
from metaunlearn.erasing import erase
from metaunlearn.errors import UserError


@pytest.mark.parametrize(
    ("method", "override", "says"),
    [
        ("uce", "gamma2=3", "gamma2 .* about the meta objective"),
        ("uce", "steps=7", r"steps .* trains nothing"),
        ("esd-u-1", "inner_steps=9", "inner_steps .* about the meta objective"),
    ],
)
def test_a_plain_run_refuses_what_is_about_another(
    call: Call, tiny_model: Path, tmp_path: Path, method: str, override: str, says: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=says):
        erase(tiny_model, ["zebra"], method=method, meta=False, overrides=[override], out=out)
    options = ("--method", method, "--no-meta", "--set", override)
    outcome = call("erase", tiny_model, "--concept", "zebra", *options, "--out", out)
    assert outcome.code == 2
    assert f"{override.partition('=')[0]} (--set" in outcome.err
    assert not out.exists()


def test_a_grid_says_to_all_of_its_runs_what_some_of_them_read(tiny_model: Path, tmp_path: Path) -> None:
    """And those that do not come out the same."""
    make(
        tmp_path / "grid", base=str(tiny_model), concept="zebra", method="uce", meta=False, recipe="small",
        overrides=["gamma2=3", "inner_steps=9", "steps=7"], seed=0, device="cpu", progress=None,
    )  # fmt: skip
    erase(tiny_model, ["zebra"], method="uce", meta=False, recipe="small", out=tmp_path / "alone")
    assert same_weights(tmp_path / "grid", tmp_path / "alone")
