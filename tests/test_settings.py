"""What every class of settings reads alike."""

from __future__ import annotations

from typing import get_args

import pytest

from metaunlearn.attacks.lora import Lora
from metaunlearn.bench.resolved import DRAWN_FIRST, META_ONLY
from metaunlearn.config import EraseSettings, Of, settings_of
from metaunlearn.erasure.interface import META_SETTINGS
from metaunlearn.erasure.uce import Uce
from metaunlearn.errors import UserError
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import Settings, resolve
from metaunlearn.unheard import ABOUT_META
from toy_denoiser import toy_run, toy_settings

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


# --- What a plain run does not read ----------------------------------------------------------------------------------

OTHERWISE = {
    "gamma2": "gamma2=7", "zeta": "zeta=3", "zeta_margin": "zeta_margin=0.5", "direct_term": "direct_term=false",
    "zeta_related": "zeta_related=1 zeta_unrelated=2", "zeta_unrelated": "zeta_related=2 zeta_unrelated=1",
    "common_noise": "common_noise=false", "inner_horizon": "inner_horizon=50", "meta_loss": "meta_loss=path",
    "post_attack_loss": "post_attack_loss=forget", "meta_retain": "meta_retain=related",
    "diagnostics_exact": "diagnostics_exact=double-backward", "difference_precision": "difference_precision=tf32",
    "inner_steps": "inner_steps=2", "inner_learning_rate": "inner_learning_rate=3", "inner_optimizer":
    "inner_optimizer=adam", "inner_momentum": "inner_momentum=0.1", "inner_weight_decay": "inner_weight_decay=0.5",
    "inner_eps_root": "inner_eps_root=1e-3", "inner_max_gradient_norm": "inner_max_gradient_norm=0.1",
    "inner_subset": "inner_subset=x", "inner_store": "inner_store=host", "meta_gradient": "meta_gradient=auto",
}  # fmt: skip
"""Each setting of the meta objective and of the simulated attacker, another way than ``plain_run`` has it."""


def plain_run(*more: str) -> dict[str, bytes]:
    """What two steps without the meta objective and without diagnoses lead to."""
    run = toy_run(toy_settings("batch_size=4", "inner_steps=3", "steps=2", "diagnostics_every=0", *more), meta=False)
    return {name: p.numpy().tobytes() for name, p in run.run(None, lambda _: None).items()}


def test_what_is_marked_as_the_meta_objectives_changes_nothing_without_it() -> None:
    """Bit for bit, so that a grid's plain run need not depend on it; a mixture of attackers does change it."""
    assert OTHERWISE.keys() == {*META_ONLY} == {*ABOUT_META} - {"attackers"}
    expected = plain_run()
    for name, said in OTHERWISE.items():
        assert toy_settings(*said.split()) != toy_settings(), name
        assert plain_run(*said.split()) == expected, name
    flat = "lipschitz_weight=1"  # Its batch is drawn after the attacker's and after a meta_retain's of its own.
    for name, said in OTHERWISE.items():
        assert (plain_run(flat, *said.split()) == plain_run(flat)) == (name not in DRAWN_FIRST), name
    two = "attackers=[{optimizer='sgd', learning_rate=1, steps=1}, {optimizer='sgd', learning_rate=1, steps=2}]"
    assert plain_run(two) != expected


def test_each_setting_has_one_mark_and_a_plain_run_reads_the_unmarked_and_the_penalties() -> None:
    marked = settings_of(*Of)
    assert len(marked) == len(set(marked)) == sum(len(settings_of(part)) for part in Of)
    assert {*ABOUT_META} - {*META_SETTINGS} == {*settings_of(Of.ATTACKER)}
    assert {*META_SETTINGS} - {*ABOUT_META} == {*settings_of(Of.FLATNESS)}
    assert not [
        name for name in EraseSettings.model_fields if name.startswith(("inner_", "zeta")) and name not in marked
    ]
