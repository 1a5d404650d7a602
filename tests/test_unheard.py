"""What a call says and its run would not read: refused from Python and on the command line, passed over in a grid."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from conftest import Call, same_weights
from metaunlearn.bench.kinds.erase import make
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import configure, refuse_unheard
from metaunlearn.errors import UserError
from metaunlearn.meta.diagnostics import EXACT
from metaunlearn.recipe import read_recipe

OF_A_STEP = (
    "subset=x", "precision=bf16", "teacher_precision=bf16", "gradient_checkpointing=true", "checkpoint_every=7",
    "diagnostics_every=7", "diagnostics_subset=x",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "override", "says"),
    [
        ("uce", "gamma2=3", "gamma2 .* about the meta objective"),
        ("uce", "steps=7", r"steps .* trains nothing"),
        ("esd-u-1", "inner_steps=9", "inner_steps .* about the meta objective"),
        *[
            (method, said, f"{said.partition('=')[0]} .* trains nothing")
            for method, said in product(("uce", "rece"), OF_A_STEP)
        ],
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


OF_PATHS = ("bank_trajectories", "bank_steps", "bank_guidance")
PAPERS = read_recipe("sd14")
"""Whose meta_gradient is auto, gamma2 is not 0, latents are the frozen teacher's, and retained pictures denoised."""


@pytest.mark.parametrize(
    ("method", "overrides", "says"),
    [
        *[("uce", [f"{key}=2"], f"{key} .* asks no frozen teacher for sampling paths") for key in OF_PATHS],
        ("rece", ["teacher_precision=bf16"], "teacher_precision .* asks no frozen teacher for answers"),
        ("esd-u-1", ["bank_refresh=5"], "bank_refresh .* because latents is frozen"),
        *[
            (
                "esd-u-1",
                [f"diagnostics_exact={exact}", f"meta_gradient={mode}"],
                f"because meta_gradient is {mode}, which is exact",
            )
            for exact, mode in product(EXACT, ("auto", "gradient-difference", "double-backward"))
        ],
        ("esd-u-1", ["diagnostics_subset=x", "diagnostics_every=0"], "because diagnostics_every is 0"),
        (
            "uce",
            ["diagnostics_exact=double-backward", "meta_gradient=first-order", "diagnostics_every=0"],
            "because diagnostics_every is 0",
        ),
        ("esd-u-1", ["gamma2=0", "zeta=3"], "zeta .* because gamma2 is 0"),
        ("sdd", ["gamma2=0", "inner_steps=9"], "inner_steps .* because gamma2 is 0"),
        ("uce", ["gamma2=0", "inner_horizon=9"], "inner_horizon .* because gamma2 is 0"),
    ],
)
def test_one_run_refuses_what_another_setting_leaves_unread(method: str, overrides: list[str], says: str) -> None:
    """Where the call says it: a recipe may."""
    with pytest.raises(UserError, match=says):
        refuse_unheard(configure(method, PAPERS, overrides), overrides, meta=True)
    refuse_unheard(configure(method, PAPERS, overrides), [], meta=True)


@pytest.mark.parametrize("method", ["imma", "resalign"])
def test_a_defence_refuses_what_it_never_asks_a_teacher_for(method: str) -> None:
    for key in OF_PATHS:
        with pytest.raises(UserError, match=f"'{method}' does not read {key}"):
            configure(method, PAPERS, [f"{key}=5"])
    said = ["teacher_precision=bf16", "retain_loss=denoising"]
    with pytest.raises(UserError, match=r"teacher_precision .* retain_loss is not distillation"):
        refuse_unheard(configure(method, PAPERS, said), said, meta=False)


def test_noise_shared_with_a_term_that_is_off_is_refused() -> None:
    with pytest.raises(UserError, match=r"common_noise .* because direct_term is false"):
        configure("esd-u-1", PAPERS, ["direct_term=false", "common_noise=false"])


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("rece", ["teacher_precision=bf16", "retain_loss=distillation", "retain_weight=1"]),
        ("esd-u-1", ["teacher_precision=bf16", "bank_steps=5", "latents=edited", "bank_refresh=5"]),
        ("sdd", ["bank_refresh=5", "bank_guidance=1"]),
        ("esd-u-1", ["difference_precision=tf32", "meta_gradient=auto"]),
        ("uce", ["difference_precision=tf32", "meta_gradient=gradient-difference"]),
        ("esd-u-1", ["diagnostics_exact=double-backward", "meta_gradient=first-order", "diagnostics_subset=x"]),
        ("esd-u-1", ["diagnostics_exact=none", "diagnostics_subset=f", "diagnostics_every=0"]),
        # What the doctor may name together: of a card's memory, and then the last resort.
        ("esd-u-1", ["difference_precision=tf32", "meta_gradient=first-order", "inner_store=host"]),
        ("esd-u-1", ["gamma2=0", "meta_gradient=first-order", "inner_store=host"]),
        *[("esd-u-1", [f"inner_optimizer={adam}", "inner_eps_root=1e-7"]) for adam in ("adam", "adamw")],
        ("imma", ["inner_steps=9", "base_set=bank_steps=5"]),
        ("resalign", ["teacher_precision=bf16", "retain_loss=distillation", "retain_weight=1"]),
    ],
)
def test_one_run_takes_what_it_reads(method: str, overrides: list[str]) -> None:
    chosen = configure(method, PAPERS, overrides)
    refuse_unheard(chosen, overrides, meta=not chosen.defended)


def test_a_grid_says_to_all_of_its_runs_what_some_of_them_read(tiny_model: Path, tmp_path: Path) -> None:
    """And those that do not come out the same."""
    make(
        tmp_path / "grid", base=str(tiny_model), concept="zebra", method="uce", meta=False, recipe="small",
        overrides=["gamma2=3", "inner_steps=9", "steps=7"], seed=0, device="cpu", progress=None,
    )  # fmt: skip
    erase(tiny_model, ["zebra"], method="uce", meta=False, recipe="small", out=tmp_path / "alone")
    assert same_weights(tmp_path / "grid", tmp_path / "alone")
