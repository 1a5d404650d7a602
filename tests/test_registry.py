"""Methods by name: what is built in, what other packages bring, what is refused, and where settings come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conftest import Call
from installing import install, template
from metaunlearn.erasing import erase
from metaunlearn.erasure.esd import Esd, Esd2025
from metaunlearn.erasure.interface import ClosedFormMethod, DefendedMethod, OptimisedMethod, moving_part
from metaunlearn.erasure.rece import Rece
from metaunlearn.erasure.registry import BUILT_IN, configure, find, has_defence, heard_by
from metaunlearn.erasure.sdd import Sdd
from metaunlearn.erasure.uce import Uce
from metaunlearn.errors import UserError
from metaunlearn.parameters import Params
from metaunlearn.recipe import RecipeFile, read_recipe

UNET = "unet/diffusion_pytorch_model.safetensors"
SMALL = read_recipe("small")


def test_names() -> None:
    assert (find("esd-u-1").kind, find("esd-u-1").preset) == (Esd, {"subset": "u", "eta": 1.0})
    assert find("esd-x-strict-2.5").preset == {"subset": "x-strict", "eta": 2.5}
    assert find("esd-first-xattn-1").preset == {"subset": "first-xattn", "eta": 1.0}
    assert find("esd-f-3.0").name == "esd-f-3"
    assert [find(name).kind for name in ("esd-2025", "sdd", "uce", "rece")] == [Esd2025, Sdd, Uce, Rece]
    assert find("uce").name == "uce-2023"


@pytest.mark.parametrize("name", ["esd-y-1", "esd-u", "esd-u--1", "ESD-u-1", "esd-u-1 ", "", "uce-2024", "sd"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown method.*--method NAME.*esd-SUBSET-ETA"):
        find(name)


def test_a_mistyped_name_is_guessed() -> None:
    for wrong, right in (("uce-2024", "uce-202"), ("rces", "rece"), ("esd-q-1", "esd-")):
        with pytest.raises(UserError, match=f"Did you mean '{right}"):
            find(wrong)


@pytest.mark.parametrize("name", ["esd-u-1", *BUILT_IN])
def test_each_is_one_of_three_kinds(name: str) -> None:
    method = configure(name, SMALL).method
    kind = ClosedFormMethod if name.startswith(("uce", "rece")) else OptimisedMethod
    if name in ("resalign", "imma"):
        kind = DefendedMethod
    kinds = (ClosedFormMethod, OptimisedMethod, DefendedMethod)
    assert [isinstance(method, other) for other in kinds] == [other is kind for other in kinds]
    assert has_defence(name) == (kind is DefendedMethod)


def test_the_meta_objective_is_on_unless_the_method_has_a_defence_of_its_own() -> None:
    assert [configure("esd-u-1", SMALL).with_meta(meta) for meta in (None, True, False)] == [True, True, False]
    assert [configure("imma", SMALL).with_meta(meta) for meta in (None, False)] == [False, False]
    with pytest.raises(UserError, match=r"'imma' brings a defence of its own.*--meta"):
        configure("imma", SMALL).with_meta(True)


def test_imma_goes_on_from_a_method_with_the_recipes_settings_for_it() -> None:
    recipe = RecipeFile(erase={**SMALL.erase, "steps": 70}, methods={"esd-x-1": {"steps": 8}, "imma": {"steps": 9}})
    found = configure("imma", recipe, ["learning_rate=0.5"])
    assert found.base is not None
    assert (found.base.name, found.base.settings.steps, found.settings.steps) == ("esd-x-1", 8, 9)
    assert found.base.settings.learning_rate == SMALL.erase["learning_rate"]
    assert found.stages == (found.base, found)
    said = ["base=uce", "base_set=erase_scale=0.5,anchor_scale=2"]
    assert configure("imma", recipe, said).record()["base"]["method_settings"]["anchor_scale"] == 2
    assert configure("imma", recipe, ["base=none"]).base is None
    with pytest.raises(UserError, match=r"without a defence of its own; got 'resalign' \(base"):
        configure("imma", recipe, ["base=resalign"])


def test_imma_and_its_base_learn_from_the_same_pictures() -> None:
    """Which are made once, by IMMA's settings: the record of the base says so, and it cannot be told otherwise."""
    recipe = RecipeFile(erase=SMALL.erase, methods={"esd-x-1": {"retain_images": 12}})
    base = configure("imma", recipe, ["retain_images=20", "retain_dropout=0.3"]).record()["base"]
    assert (base["settings"]["retain_images"], base["settings"]["retain_dropout"]) == (20, 0.3)
    with pytest.raises(UserError, match=r"retain_dropout in base_set .*set it for both \(--set retain_dropout="):
        configure("imma", recipe, ["base_set=retain_dropout=0.1,steps=3"])
    with pytest.raises(UserError, match="'resalign' does not read inner_store"):
        configure("resalign", SMALL, ["inner_store=disk"])


@pytest.mark.parametrize("name", ["resalign", "imma"])
def test_settings_of_the_meta_objective_are_refused_where_nothing_reads_them(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' does not read gamma2, zeta"):
        configure(name, SMALL, ["zeta=1", "gamma2=1"])
    with pytest.raises(UserError, match=f"'{name}' does not read difference_precision"):
        configure(name, SMALL, ["difference_precision=tf32"])
    assert heard_by(name, SMALL, ["zeta=1", "steps=5"]) == ["steps=5"]
    assert heard_by("esd-u-1", SMALL, ["zeta=1", "steps=5"]) == ["zeta=1", "steps=5"]


def test_one_attacker_is_said_to_those_without_a_mixture_of_their_own() -> None:
    assert heard_by("resalign", SMALL, ["inner_steps=2", "steps=5"]) == ["steps=5"]
    assert heard_by("resalign", SMALL, ["inner_steps=2", "attackers=[]"]) == ["inner_steps=2", "attackers=[]"]
    assert heard_by("imma", SMALL, ["inner_steps=2"]) == ["inner_steps=2"]


def test_where_settings_come_from() -> None:
    """--set before [methods.NAME] before [erase] before the preset; each key goes where it belongs."""
    recipe = RecipeFile(
        erase=SMALL.erase | {"steps": 7, "gamma2": 0.3},
        methods={"uce": {"steps": 5, "guide": "art", "erase_scale": 2.0}, "sdd": {"steps": 9}},
    )
    chosen = configure("uce-2023", recipe, ["erase_scale=3", "zeta=0.5"])
    assert chosen.method == Uce(guide="art", erase_scale=3.0)
    assert (chosen.settings.steps, chosen.settings.gamma2, chosen.settings.zeta) == (5, 0.3, 0.5)
    assert chosen.method_settings["guide"] == "art"
    assert configure("esd-u-1", recipe).settings.steps == 7
    assert configure("uce-2025", recipe).method == Uce(
        tokens="last", guide="", keep_empty=False, preserve_scale=1.0, erase_scale=1.0
    )


def test_the_papers_gamma2() -> None:
    """Appendix E.2: 0.05 for ESD-u-1; 0.1 for ESD-u-3, ESD-f-3 and SDD."""
    found = {name: configure(name, read_recipe("sd14")).settings.gamma2 for name in ("esd-u-1", "esd-u-3", "esd-f-3")}
    assert found == {"esd-u-1": 0.05, "esd-u-3": 0.1, "esd-f-3": 0.1}
    sdd = configure("sdd", read_recipe("sd14"))
    assert (sdd.settings.gamma2, sdd.settings.steps, sdd.settings.weight_decay) == (0.1, 1500, 1e-4)
    assert (sdd.settings.learning_rate, sdd.settings.max_gradient_norm, sdd.settings.bank_guidance) == (1e-5, 1.0, 3.0)
    assert sdd.method == Sdd(subset="x", ema_decay=0.999, bank_refresh=100)


@pytest.mark.parametrize("recipe", ["sd14", "sd21", "sdxl"])
def test_the_papers_second_stage_retains_nothing(recipe: str) -> None:
    """Algorithm 1, lines 11 and 12: L_unlearn is for ESD and SDD alone, which keep their retain term."""
    found = {name: configure(name, read_recipe(recipe)).settings.retain_weight for name in ("uce", "uce-2025", "rece")}
    assert found == {"uce": 0, "uce-2025": 0, "rece": 0}
    assert all(configure(name, read_recipe(recipe)).settings.retain_weight > 0 for name in ("esd-u-1", "sdd"))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("esd-u-1", ["eta=2"], r"'esd-u-1' says eta itself.*--set"),
        ("sdd", ["ema_decya=0.5"], "Did you mean 'ema_decay'"),
        ("esd-u-1", ["mu=0.5"], "unknown key 'mu'"),
        ("esd-2025", ["eta=-1"], "eta"),
        ("sdd", ["ema_decay"], "key=value"),
    ],
)
def test_wrong_settings_are_refused(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configure(name, SMALL, overrides)


def test_a_recipes_table_for_no_method_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown method 'sddd'.*Did you mean 'sdd'"):
        configure("esd-u-1", RecipeFile(erase=SMALL.erase, methods={"sddd": {"steps": 1}}))


def test_the_template_of_contributing_is_a_method(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    entries, source = template("An erasing method")
    install(packages, "my_method", entries, source)
    [name] = entries
    fast = ("steps=2", "forget_images=4", "retain_images=4", "bank_trajectories=2", "bank_steps=3", "batch_size=2")
    overrides = [*fast, "meta_gradient=first-order", "share=0.5"]
    result = erase(tiny_model, ["zebra"], method=name, overrides=overrides, out=tmp_path / "run")
    assert (result.summary["method"], result.summary["meta"]) == (name, True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["request"]["method_settings"] == {"share": 0.5}
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "run" / UNET)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all("attn2" in key for key in moved)
    with pytest.raises(UserError, match=r"share.*less than or equal to 1"):
        configure(name, SMALL, ["share=2"])


FAST = ("steps=2", "forget_images=4", "retain_images=4", "batch_size=2")

CLOSED_FORM = """
from metaunlearn.erasure.interface import Edit
from metaunlearn.settings import Settings

class Shrunk(Settings):
    by: float = 0.5

    def trained(self, model):
        return frozenset(name for name in model.parameter_names if "attn2.to_v" in name)

    def edit(self, task):
        theta = task.model.parameters()
        return Edit(theta | {name: theta[name] * self.by for name in self.trained(task.model)}, {"by": self.by})
"""

DEFENDED = """
from typing import ClassVar

from metaunlearn.diffusion import denoising_loss
from metaunlearn.erasure.interface import META_SETTINGS, DefenceGradient
from metaunlearn.parameters import scale, value_and_gradient
from metaunlearn.settings import Settings

class Ascent(Settings):
    unread: ClassVar = (*META_SETTINGS, "attackers")
    by: float = 1.0

    def trained(self, model):
        return frozenset(name for name in model.parameter_names if "attn2.to_v" in name)

    def defend(self, task, data):
        return Ascending(task.model, self)

    def gradients(self, settings):
        return 1.0

class Ascending:
    def __init__(self, model, options):
        self.model, self.options = model, options

    def gradient(self, theta, step, inner, outer):
        loss = lambda theta: denoising_loss(self.model, theta, outer[0])
        value, gradient = value_and_gradient(loss, theta, self.options.trained(self.model))
        return DefenceGradient(scale(gradient, -self.options.by), {"loss_concept": value.item()})
"""


def moved(before: Path, after: Path) -> dict[str, float]:
    """By name, how far each changed parameter is from 0, as a share of what it was."""
    old, new = load_file(before / UNET), load_file(after / UNET)
    return {name: (new[name].norm() / old[name].norm()).item() for name in old if not torch.equal(old[name], new[name])}


def test_a_closed_form_of_another_package(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    """Alone it is its edit, W' = 0.25 W; with the meta objective Algorithm 1 goes on from there, on what it trains."""
    install(packages, "closed_form", {"shrunk": "closed_form:Shrunk"}, CLOSED_FORM)
    result = erase(tiny_model, ["zebra"], method="shrunk", meta=False, overrides=["by=0.25"], out=tmp_path / "plain")
    assert result.summary["edit"] == {"by": 0.25}
    plain = moved(tiny_model, tmp_path / "plain")
    assert set(plain.values()) == {0.25}
    overrides = [*FAST, "post_attack_loss=denoising", "zeta_margin=none", "meta_gradient=first-order", "by=0.25"]
    erase(tiny_model, ["zebra"], method="shrunk", overrides=overrides, out=tmp_path / "meta")
    assert moved(tmp_path / "plain", tmp_path / "meta").keys() == plain.keys()


def test_a_defence_of_another_package(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    install(packages, "defended", {"ascent": "defended:Ascent"}, DEFENDED)
    result = erase(tiny_model, ["zebra"], method="ascent", overrides=FAST, out=tmp_path / "run")
    assert (result.summary["method"], result.summary["meta"]) == ("ascent", False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all("loss_concept" in line for line in lines if line["step"])
    changed = moved(tiny_model, tmp_path / "run")
    assert changed
    assert all("attn2.to_v" in name for name in changed)
    with pytest.raises(UserError, match="'ascent' does not read zeta"):
        configure("ascent", SMALL, ["zeta=1"])


MOVES_ALL = """
from my_method import *

class Mover(MyMethod):
    def begin(self, task):
        loss = super().begin(task)
        take = loss.batch
        def batch(theta, step, size, generator):
            for p in theta.values():
                p.add_(0.01)
            return take(theta, step, size, generator)
        loss.batch = batch
        return loss
"""


def test_a_method_that_moves_what_it_does_not_train_is_stopped_at_its_first_step(
    tiny_model: Path, packages: Path, tmp_path: Path
) -> None:
    entries, source = template("An erasing method")
    install(packages, "my_method", {}, source)
    [target] = entries.values()
    install(packages, "mover", {"mover": "mover:Mover"}, MOVES_ALL.replace("MyMethod", target.partition(":")[2]))
    steps: list[int] = []
    with pytest.raises(UserError, match=r"Mover has changed parameters that its trained\(\) does not name"):
        erase(
            tiny_model, ["zebra"], method="mover", meta=False, overrides=FAST, out=tmp_path / "run",
            progress=lambda what, done, total: steps.append(done) if what == "erasing" else None,
        )  # fmt: skip
    assert steps == []
    assert not (tmp_path / "run" / UNET).exists()


def test_half_of_what_moving_takes_is_refused() -> None:
    """A teacher that is saved must come back in a resumed run; one that nobody asks after would never move."""

    class Half:
        def after_step(self, theta: Params, step: int) -> None: ...

        def result(self, theta: Params) -> Params:
            return theta

    class Whole(Half):
        def state(self) -> Params:
            return {}

        def restore(self, state: Params) -> None: ...

    with pytest.raises(UserError, match=r"Half has after_step, result, and .* needs state, restore, too"):
        moving_part(Half())
    whole = Whole()
    assert moving_part(whole) is whole
    assert moving_part(object()) is None


def test_a_subset_that_the_name_says_is_changed_in_the_name() -> None:
    model = SimpleNamespace(parameter_names=["conv_in.weight"])
    with pytest.raises(UserError, match=r"Subset 'x' .*--method esd-SUBSET-ETA.* holds none"):
        configure("esd-x-1", SMALL).method.trained(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sdd", "uce", "esd-u-1"])
def test_a_name_that_exists_is_refused(packages: Path, name: str) -> None:
    install(packages, "rival", {name: "rival:Anything"})
    with pytest.raises(UserError, match=f"'{name}'.*rival and by metaunlearn.*rename"):
        find(name)
    assert find("rece").kind is Rece


def test_a_name_that_two_packages_bring_is_refused(packages: Path) -> None:
    install(packages, "one", {"blank": "one:Blank"})
    install(packages, "two", {"blank": "two:Blank"})
    with pytest.raises(UserError, match=r"'blank'.*(one and by two|two and by one)"):
        find("blank")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "cannot be loaded: AttributeError"),
        ("class M(", "cannot be loaded: SyntaxError: '.' was never closed"),
        ("x = no_such_name", "cannot be loaded: NameError: name 'no_such_name' is not defined"),
        (
            "from metaunlearn.settings import Settings\nclass M(Settings):\n    share = 0.5",
            "cannot be loaded: PydanticUserError: A non-annotated attribute was detected: `share = 0.5`",
        ),
        ("class M: pass", r"no subclass of metaunlearn\.settings\.Settings"),
        ("from metaunlearn.settings import Settings\nclass M(Settings): pass", "it has none of them"),
        (
            "from metaunlearn.settings import Settings\nclass M(Settings):\n    def trained(self, model): ...\n"
            "    def defend(self, task, data): ...",
            "must have unread and gradients beside defend",
        ),
        (
            "from metaunlearn.settings import Settings\n"
            "class M(Settings):\n    trained = begin = edit = lambda self: 0",
            "it has begin and edit",
        ),
        (
            "from metaunlearn.settings import Settings\nclass M(Settings):\n    steps: int = 1\n"
            "    def trained(self, model): ...\n    def edit(self, task): ...",
            "every method has already: steps",
        ),
    ],
)
def test_what_is_no_method_is_refused(packages: Path, source: str, message: str) -> None:
    # A module of its own for each case: Python keeps what it has imported.
    package = f"wrong{abs(hash(source))}"
    install(packages, package, {"theirs": f"{package}:M"}, source)
    with pytest.raises(UserError, match=rf"'theirs' of the package {package}.*{message}"):
        find("theirs")


def test_the_command_line_says_it(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    outcome = call("erase", tiny_model, "--concept", "zebra", "--method", "sddd", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "Did you mean 'sdd'?" in outcome.err
    assert not (tmp_path / "out").exists()
    out = tmp_path / "uce"
    options = ("--method", "uce", "--no-meta", "--set", "erase_scale=0.5", "--json")
    outcome = call("erase", tiny_model, "--concept", "zebra", *options, "--out", out)
    assert outcome.code == 0
    assert json.loads(outcome.out)["edit"]["edited_matrices"] == 8
    assert "condition number" in outcome.err
