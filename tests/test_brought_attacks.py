"""Attacks of other packages: CONTRIBUTING.md's example, what is no attack, and what is handed over."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attack_fixtures import FAST, UNET, write_pictures
from conftest import Call, read_lines, same_weights
from installing import brought, example, install
from metaunlearn import plugins
from metaunlearn.attacking import attack
from metaunlearn.attacks.registry import known as known_attack
from metaunlearn.errors import RunError, UserError
from metaunlearn.plugins import package_hash

GROUP = "metaunlearn.attacks"


def test_the_template_of_contributing_is_an_attack(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    """At step 0 every tensor is off by about ``noise`` of its norm, and the same again with the same seed."""
    name = example(packages, "An attack", GROUP)
    data = write_pictures(tmp_path / "data")
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        attack(
            tiny_model, data, kind=name, steps=[0, 1], overrides=[*FAST, "noise=0.25"], seed=seed, out=tmp_path / run
        )
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "a" / "step-000000" / UNET)
    off = {key: ((after[key] - before[key]).norm() / before[key].norm()).item() for key in before if before[key].any()}
    assert off == pytest.approx(dict.fromkeys(off, 0.25), rel=0.7)
    assert math.fsum(off.values()) / len(off) == pytest.approx(0.25, rel=0.05)
    assert same_weights(tmp_path / "a" / "step-000001", tmp_path / "b" / "step-000001")
    assert not same_weights(tmp_path / "a" / "step-000000", tmp_path / "c" / "step-000000")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["request"]["settings"]["noise"] == 0.25
    assert record["request"]["packages"][name][1:] == ["my_attack 1.0"]


def test_an_attack_of_another_package_on_the_command_line(
    tiny_model: Path, packages: Path, tmp_path: Path, call: Call
) -> None:
    name = example(packages, "An attack", GROUP)
    data = write_pictures(tmp_path / "data")
    told = ("attack", tiny_model, "--data", data, "--steps", "0", "--out", tmp_path / "out")
    assert call(*told, "--kind", "shakn").err.count(f"Did you mean '{name}'?") == 1
    assert "greater than or equal to 0" in call(*told, "--kind", name, "--set", "noise=-1").err
    assert "unknown key 'noise'" in call(*told, "--kind", "finetune", "--set", "noise=1").err
    assert "'shaken' has no setting 'rank' (--set rank=...); lora" in call(*told, "--kind", name, "--set", "rank=1").err
    assert call(*told, "--kind", name).code == 0


DAMPED = """
from typing import ClassVar

from metaunlearn.attacks.interface import save_with
from metaunlearn.settings import Settings

class Theirs(Settings):
    needs: ClassVar = ()
    level: ClassVar = "factor"
    strengths: ClassVar = (0.5,)
    leaves: ClassVar = "pipeline"
    changed: ClassVar = ("unet",)

    def check(self, model, base, strengths): ...

    def make(self, task, strength, folder, twin):
        theta = task.model.parameters()
        save_with(task.model, {name: strength * p for name, p in theta.items()}, back=theta, folder=folder, twin=twin)
        return {"factor": strength}
"""


def test_an_attack_of_another_package_that_does_not_train(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    name = brought(packages, GROUP, "damped", DAMPED)
    result = attack(tiny_model, kind=name, out=tmp_path / "run")
    assert result.checkpoints == {0.5: tmp_path / "run" / "factor-0.50"}
    before, after = load_file(tiny_model / UNET), load_file(tmp_path / "run" / "factor-0.50" / UNET)
    assert all(torch.equal(after[key], 0.5 * before[key]) for key in before)
    assert read_lines(tmp_path / "run" / "log.jsonl") == [{"step": 1, "factor": 0.5}]


NO_ATTACK = {
    "class Theirs: pass": r"no subclass of metaunlearn\.settings\.Settings",
    "from metaunlearn.settings import Settings\nclass Theirs(Settings): pass": "it has neither",
    DAMPED + "    begin = make": "it has begin and make",
    DAMPED.replace("def check", "def checked"): "must have check",
    DAMPED.replace("make", "begin"): r"trains, and is no subclass of metaunlearn\.config\.AttackSettings",
    DAMPED.replace("make", "begin").replace("(Settings)", "(AttackSettings)").replace(
        "import Settings", "import Settings\nfrom metaunlearn.config import AttackSettings"
    ): "must have copies",
    DAMPED.replace("needs: ClassVar = ()", "").replace("changed: Class", "also: Class"): "must have needs, changed",
    DAMPED.replace('"factor"\n', '"a factor"\n'): "level is a word",
    DAMPED.replace('"factor"\n', '"bits"\n'): "none of step, bits; got 'bits'",
    DAMPED.replace('"factor"\n', "3\n"): "level is a word",
    DAMPED.replace("(0.5,)", "(-0.5,)"): "numbers of at least 0",
    DAMPED.replace('("unet",)', '("unet")'): "changed is a tuple of names; got 'unet'",
    DAMPED.replace('("unet",)', '("unet", "vae")'): "changes vae, which its copies does not name",
    DAMPED.replace("(0.5,)", "()"): "strengths are numbers of at least 0, at least one",
    DAMPED.replace("needs: ClassVar = ()", "needs: ClassVar = ('donor',)"): "needs holds data or base",
    DAMPED.replace('"pipeline"', '"a model"'): "leaves is pipeline or pictures; got .* 'a model'",
}  # fmt: skip


@pytest.mark.parametrize("source", NO_ATTACK)
def test_what_is_no_attack_is_refused(packages: Path, source: str) -> None:
    name = brought(packages, GROUP, "wrong", source)
    with pytest.raises(UserError, match=rf"'{name}' of the package theirs\d+.*{NO_ATTACK[source]}"):
        known_attack(name)


def test_an_attack_that_exists_is_refused(packages: Path) -> None:
    install(packages, "rival", {"lora": "rival:Anything"}, group=GROUP)
    with pytest.raises(UserError, match=r"the attack 'lora' .*rival and by metaunlearn.*metaunlearn\.attacks"):
        known_attack("lora")
    known_attack("finetune")


TRAINING = """
from typing import ClassVar

import torch
from metaunlearn.attacks.finetune import Finetune
from metaunlearn.attacks.interface import Training

class Theirs(Finetune):
    copies: ClassVar = ()

    def begin(self, task):
        training = super().begin(task)
        first = next(iter(training.trained.values()))
        return RETURNED
"""


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "must return a .*Training; got NoneType"),
        ("Training(trained=[first], loss=training.loss, write=training.write)", "by name, at least one; got none"),
        (
            "Training(trained={'w': first}, loss=training.loss, write=training.write, changed=('transformer',))",
            "changes transformer, which Theirs.copies does not name",
        ),
        ("Training(trained={}, loss=training.loss, write=training.write)", "at least one; got none"),
        ("Training(trained={'w': first.requires_grad_() * 1}, loss=training.loss, write=training.write)", "w is none"),
        ("Training(trained={'w': torch.ones(2).long()}, loss=training.loss, write=training.write)", "w is none"),
        (
            "Training(trained={'w': first}, loss=training.loss, write=training.write, changed=('unet', 'vae'))",
            "changes vae, which Theirs.copies does not name",
        ),
        (
            "Training(trained={'w': first}, loss=lambda g: first.flatten()[:2], write=training.write)",
            r"a scalar that depends on what is trained; got the shape \(2,\)",
        ),
        ("Training(trained={'w': first}, loss=lambda g: torch.ones(()), write=training.write)", "without a gradient"),
        ("Training(trained={'w': first}, loss=lambda g: 1.5, write=training.write)", r"what is trained; got 1\.5"),
    ],
)  # fmt: skip
def test_what_a_training_hands_over_is_looked_at(
    tiny_model: Path, packages: Path, tmp_path: Path, returned: str, message: str
) -> None:
    name = brought(packages, GROUP, "training", TRAINING.replace("RETURNED", returned))
    with pytest.raises(UserError, match=rf"Theirs\.begin\(\).*{message}"):
        attack(
            tiny_model, write_pictures(tmp_path / "data"), kind=name, steps=[1], overrides=FAST, out=tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('return {"factor": strength}', "return [strength]", r"figures by name, and none called step; got \[0\.5\]"),
        ('return {"factor": strength}', 'return {"factor": float("nan")}', "figures of JSON values"),
        ('return {"factor": strength}', 'return {"step": 3}', "none called step"),
        (
            "theta = task",
            "next(task.model.unet.parameters()).data.zero_(); theta = task",
            "has changed the model",
        ),
        ("save_with(task.model, {", "dict(x={", "must leave pipeline in .*no model_index.json"),
    ],
)
def test_what_an_edit_leaves_is_looked_at(
    tiny_model: Path, packages: Path, tmp_path: Path, before: str, after: str, message: str
) -> None:
    name = brought(packages, GROUP, "edit", DAMPED.replace(before, after))
    with pytest.raises(RunError, match=rf"Theirs\.make\(\).*{message}"):
        attack(tiny_model, kind=name, out=tmp_path / "run")


def test_a_training_that_is_saved_nowhere_is_no_attack(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    source = TRAINING.replace("RETURNED", "Training(trained=training.trained, loss=training.loss, write=lambda: None)")
    name, data = brought(packages, GROUP, "training", source), write_pictures(tmp_path / "data")
    with pytest.raises(RunError, match=r"Theirs has trained, and its write\(\) puts nothing into the pipeline"):
        attack(tiny_model, data, kind=name, steps=[0, 1], overrides=[*FAST, "learning_rate=1e-3"], out=tmp_path / "run")


def test_components_that_a_pipeline_does_not_have_are_refused(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    """What XL alone has may be named for all."""
    own = DAMPED.replace("needs:", "copies: ClassVar = ('transformer', 'text_encoder_2')\n    needs:")
    for changed, refused in ((("unet", "text_encoder_2"), False), (("unet", "transformer"), True)):
        name = brought(packages, GROUP, "parts", own.replace('("unet",)', str(changed)))
        if refused:
            with pytest.raises(UserError, match="Theirs changes transformer, which the pipeline does not have"):
                attack(tiny_model, kind=name, out=tmp_path / name)
        else:
            attack(tiny_model, kind=name, out=tmp_path / name)


def test_a_run_does_not_go_on_with_another_version(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    """The same run under other code would be half of each."""
    source = DAMPED + "of_this_test = 1\n"
    name = brought(packages, GROUP, "damped", source)
    attack(tiny_model, kind=name, out=tmp_path / "run")
    attack(tiny_model, kind=name, out=tmp_path / "run", resume=True)
    [module] = packages.glob("theirs*.py")
    module.write_text(source + "x = 1\n")
    package_hash.cache_clear()
    with pytest.raises(UserError, match=rf"\(packages\): packages\.{name} was .* and is "):
        attack(tiny_model, kind=name, out=tmp_path / "run", resume=True)


def test_what_is_installed_later_is_found(packages: Path) -> None:
    with pytest.raises(UserError, match=r"unknown attack 'late'.*where another package brings it, install that"):
        known_attack("late")
    install(packages, "late_package", {"late": "late_package:Theirs"}, DAMPED, group=GROUP)
    known_attack("late")


def test_looking_for_attacks_scans_what_is_installed_once(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid asks for every row."""
    name, seen = brought(packages, GROUP, "damped", DAMPED), []
    whole = plugins.entry_points
    monkeypatch.setattr(plugins, "entry_points", lambda **group: seen.append(group) or whole(**group))
    for _ in range(20):
        known_attack(name)
        known_attack("lora")
    assert len(seen) <= 1
