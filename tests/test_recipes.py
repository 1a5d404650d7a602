"""What recipes resolve to: a recipe over another, whatever each calls a method, and published values by method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metaunlearn.config import AttackSettings, EraseSettings, Regime
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


@pytest.mark.parametrize(
    ("recipe", "command"), [("demo", "demo"), ("table1-canvas", "bench"), ("frontier-canvas", "tune")]
)
def test_a_recipe_of_another_kind_is_told_from_one_that_lacks_keys(recipe: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no settings of erasing .* is one for {command}.* such as as-released, sd14"):
        configure("esd-x-1", read_recipe(recipe), ["steps=3"])
    (tmp_path / "mine.toml").write_text("[erase]\nsteps = 3\n")
    with pytest.raises(UserError, match=r"the keys 'learning_rate', 'batch_size', .* are missing"):
        configure("esd-x-1", read_recipe(str(tmp_path / "mine.toml")))


def test_what_a_recipe_does_not_say_is_as_documented() -> None:
    erasing = {"gamma1": 1.0, "zeta": 1.0, "inner_weight_decay": 0.01, "inner_eps_root": 1e-8, "max_gradient_norm": 1.0}
    assert {name: EraseSettings.model_fields[name].default for name in erasing} == erasing
    attacking = {"optimizer": "adamw", "batch_size": 8, "weight_decay": 0.01}
    assert {name: AttackSettings.model_fields[name].default for name in attacking} == attacking
    assert Regime(steps=(1,), learning_rate=1e-4).pictures == 40


def test_the_names_are_the_registrys() -> None:
    for subset in SUBSETS:
        assert find(f"esd-{subset}-3.0").name == one_name(f"esd-{subset}-3.0") == f"esd-{subset}-3"
        assert ESD_NAME.fullmatch(f"esd-{subset}-0.5")
    assert [one_name(name) for name in ("esd-u-10", "esd-u-0.00001", "sdd")] == ["esd-u-10", "esd-u-0.00001", "sdd"]
    assert {find(name).name for name in ALIASES} <= {*BUILT_IN}


# --- What is published -----------------------------------------------------------------------------------------------

PAPERS_ESD = {"steps": 1000, "learning_rate": 1e-5, "bank_guidance": 3.0, "bank_steps": 50, "latents": "frozen"}
"""The paper's E.2, with ESD's guidance and DDIM steps; it samples the latents from the frozen model."""
UCE = {"erase_scale": 1.0, "anchor_scale": 0.5}
SECOND_STAGE = {"steps": 100, "learning_rate": 1e-5}
"""100 steps in the authors' code, after the edit; the rate is E.2's, too."""
NOTHING_KEPT = {"retain_weight": 0.0}
"""Algorithm 1, lines 11 and 12: L_unlearn, and L_retain in it, is for ESD and SDD alone."""
BY_BOTH_PAPERS: dict[str, dict[str, Any]] = {
    "esd-u-1": {**PAPERS_ESD, "subset": "u", "eta": 1.0, "gamma2": 0.05},
    "esd-u-3": {**PAPERS_ESD, "subset": "u", "eta": 3.0, "gamma2": 0.1},
    "esd-f-3": {**PAPERS_ESD, "subset": "f", "eta": 3.0, "gamma2": 0.1},
    "sdd": {
        "steps": 1500, "learning_rate": 1e-5, "weight_decay": 1e-4, "max_gradient_norm": 1.0, "bank_guidance": 3.0,
        "ema_decay": 0.999, "subset": "x", "gamma2": 0.1,
    },
    "uce-2023": {
        **UCE, **SECOND_STAGE, **NOTHING_KEPT, "tokens": "from-last", "guide": " ", "keep_empty": True,
        "preserve_scale": None,  # max(0.1, 1 / number)
    },
    "uce-2025": {
        **UCE, **SECOND_STAGE, **NOTHING_KEPT, "tokens": "last", "guide": "", "keep_empty": False,
        "preserve_scale": 1.0,
    },
    "rece": {
        **SECOND_STAGE, **NOTHING_KEPT, "mu": 0.1, "epochs": 3, "anchor_scale": 0.1, "erase_scale": 1.0,
        "preserve_scale": 0.1, "guide": " ",
    },
    "resalign": {"iterations": 5, "sampled": 3},
    "imma": {
        "rank": 4, "inner_learning_rate": 1e-4, "learning_rate": 1e-5, "forget_images": 20,
        "targets": ["to_q", "to_k", "to_v", "to_out.0"],
    },
}  # fmt: skip
"""Of Stable Diffusion, whichever: E.2 of the meta-unlearning paper, and the code of the method's own authors."""
OFFICIAL = {
    "learning_rate": 1e-5, "weight_decay": 1e-4, "max_gradient_norm": 1.0, "batch_size": 10,
    "meta_gradient": "first-order", "direct_term": False, "stratified": False,
    "inner_optimizer": "adamw", "inner_learning_rate": 1e-5, "inner_steps": 3, "inner_max_gradient_norm": 1.0,
    "forget_images": 30,
}  # fmt: skip
"""The authors' released code: an epoch of 30 pictures, ten at a time, is three steps of a fresh AdamW."""
OFFICIAL_ESD = {**OFFICIAL, "steps": 1500, "latents": "edited", "bank_steps": 50, "bank_guidance": 3.0}
OFFICIAL_STAGE = {**OFFICIAL, **SECOND_STAGE, "inner_subset": "f"}
TABLE: dict[str, dict[str, dict[str, Any]]] = {
    "sd14": {
        **BY_BOTH_PAPERS,
        "esd-2025": {"steps": 200, "learning_rate": 5e-5, "bank_guidance": 3.0, "eta": 2.0, "subset": "x"},
    },
    "sdxl": {
        **BY_BOTH_PAPERS,
        "esd-2025": {"steps": 200, "learning_rate": 2e-4, "bank_guidance": 2.0, "eta": 1.0, "subset": "x"},
    },
    "as-released": {
        "esd-x-1": {**OFFICIAL_ESD, "eta": 1.0, "inner_subset": "f"},
        "esd-x-3": {**OFFICIAL_ESD, "eta": 3.0, "inner_subset": "f"},
        "esd-u-1": {**OFFICIAL_ESD, "eta": 1.0, "inner_subset": "f"},
        "esd-u-3": {**OFFICIAL_ESD, "eta": 3.0, "inner_subset": "f"},
        "esd-f-3": {**OFFICIAL_ESD, "eta": 3.0, "inner_subset": "f"},
        "sdd": {**OFFICIAL, "steps": 1500, "ema_decay": 0.999, "subset": "f", "inner_subset": "f"},
        "uce-2023": {**OFFICIAL_STAGE, **UCE, "tokens": "from-last"},
        "uce-2025": {**OFFICIAL_STAGE, **UCE, "tokens": "last"},
        "rece": {**OFFICIAL_STAGE, "mu": 0.1, "epochs": 3, "anchor_scale": 0.1, "preserve_scale": 0.1},
    },
}
TABLE["sd21"] = TABLE["sd14"]


def resolved(recipe: str, method: str) -> dict[str, Any]:
    """All settings of both kinds; where both have a key, the method's."""
    chosen = configure(method, read_recipe(recipe))
    return {**chosen.settings.model_dump(mode="json"), **chosen.method_settings}


@pytest.mark.parametrize(("recipe", "method"), [(recipe, method) for recipe in TABLE for method in TABLE[recipe]])
def test_published_values(recipe: str, method: str) -> None:
    expected, found = TABLE[recipe][method], resolved(recipe, method)
    assert {key: found[key] for key in expected} == expected


def test_every_table_of_these_recipes_is_looked_at() -> None:
    for recipe, methods in TABLE.items():
        assert read_recipe(recipe).methods.keys() <= methods.keys()


@pytest.mark.parametrize("method", TABLE["as-released"])
def test_the_weights_of_the_released_objective(method: str) -> None:
    """esd_meta.sh and sdd_meta.sh: g11 = 0.1, g12 = 0.01; meta.sh, after UCE or RECE: 0.1 and 0.1. All three:
    g21 = 0.01, the last of three, and g22 = g23 = 1, the default. Theirs are sums over three batches, ours is a mean.
    """
    s = configure(method, read_recipe("as-released")).settings
    related, unrelated = s.zeta_related, s.zeta_unrelated
    assert None not in (s.retain_related, s.retain_unrelated, related, unrelated)
    g11, g12 = s.retain_weight * (s.retain_unrelated or 0), s.retain_weight * (s.retain_related or 0)
    g21, g22, g23 = s.gamma2, s.gamma2 * s.zeta * (related or 0), s.gamma2 * s.zeta * (unrelated or 0)
    closed = method.startswith(("uce", "rece"))
    assert [g11, g12, g21, g22, g23] == pytest.approx([3 * g for g in (0.1, 0.1 if closed else 0.01, 0.01, 1, 1)])
