"""Attacks and metrics of other packages: CONTRIBUTING.md's examples, what is neither, and what is handed over.

Methods of other packages are in test_registry.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attack_fixtures import FAST, UNET, write_pictures
from conftest import Call, read_lines, same_weights
from installing import install, template
from metaunlearn.attacking import attack
from metaunlearn.attacks.registry import known as known_attack
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.errors import RunError, UserError
from metaunlearn.evaluating_pictures import evaluate_pictures
from metaunlearn.evaluation import evaluate
from metaunlearn.metrics.registry import find, metrics_named, reads

ATTACKS, METRICS = "metaunlearn.attacks", "metaunlearn.metrics"


def module(name: str, source: str) -> str:
    """A name for a module of this content: Python keeps what it has imported."""
    return f"{name}{abs(hash(source))}"


def brought(packages: Path, group: str, name: str, source: str, kind: str = "Theirs") -> str:
    """The package ``source`` with the class ``kind`` as ``name``, which is made one of its own; returns that."""
    package = module("theirs", source)
    own = f"{name}{abs(hash(source))}"
    install(packages, package, {own: f"{package}:{kind}"}, source, group=group)
    return own


def example(packages: Path, of: str, group: str) -> str:
    """Installs CONTRIBUTING.md's example; returns its name."""
    entries, source = template(of)
    [(name, target)] = entries.items()
    install(packages, target.partition(":")[0], entries, source, group=group)
    return name


def test_the_template_of_contributing_is_an_attack(tiny_model: Path, packages: Path, tmp_path: Path) -> None:
    """At step 0 every tensor is off by about ``noise`` of its norm, and the same again with the same seed."""
    name = example(packages, "An attack", ATTACKS)
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
    assert record["versions"]["my_attack"] == "1.0"
    assert "my_attack" in json.loads((tmp_path / "a" / "step-000001" / "run.json").read_text())["versions"]


def test_an_attack_of_another_package_on_the_command_line(
    tiny_model: Path, packages: Path, tmp_path: Path, call: Call
) -> None:
    name = example(packages, "An attack", ATTACKS)
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
    name = brought(packages, ATTACKS, "damped", DAMPED)
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
    DAMPED.replace("(0.5,)", "()"): "strengths are one number or more",
    DAMPED.replace("needs: ClassVar = ()", "needs: ClassVar = ('donor',)"): "needs holds data or base",
    DAMPED.replace('"pipeline"', '"a model"'): "leaves is pipeline or pictures; got .* 'a model'",
}  # fmt: skip


@pytest.mark.parametrize("source", NO_ATTACK)
def test_what_is_no_attack_is_refused(packages: Path, source: str) -> None:
    name = brought(packages, ATTACKS, "wrong", source)
    with pytest.raises(UserError, match=rf"'{name}' of the package theirs\d+.*{NO_ATTACK[source]}"):
        known_attack(name)


def test_an_attack_that_exists_is_refused(packages: Path) -> None:
    install(packages, "rival", {"lora": "rival:Anything"}, group=ATTACKS)
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
        ("Training(trained={}, loss=training.loss, write=training.write)", "at least one; got none"),
        ("Training(trained={'w': first.requires_grad_() * 1}, loss=training.loss, write=training.write)", "w is none"),
        ("Training(trained={'w': torch.ones(2).long()}, loss=training.loss, write=training.write)", "w is none"),
        (
            "Training(trained={'w': first}, loss=training.loss, write=training.write, changed=('unet', 'vae'))",
            "changes vae, which Theirs.copies does not name",
        ),
        (
            "Training(trained={'w': first}, loss=lambda g: first.flatten()[:2], write=training.write)",
            r"a scalar that depends on what is trained; it has the shape \(2,\)",
        ),
        ("Training(trained={'w': first}, loss=lambda g: torch.ones(()), write=training.write)", "scalar that depends"),
        ("Training(trained={'w': first}, loss=lambda g: 1.5, write=training.write)", r"what is trained; it 1\.5"),
    ],
)  # fmt: skip
def test_what_a_training_hands_over_is_looked_at(
    tiny_model: Path, packages: Path, tmp_path: Path, returned: str, message: str
) -> None:
    name = brought(packages, ATTACKS, "training", TRAINING.replace("RETURNED", returned))
    with pytest.raises(UserError, match=rf"Theirs\.begin\(\).*{message}"):
        attack(
            tiny_model, write_pictures(tmp_path / "data"), kind=name, steps=[1], overrides=FAST, out=tmp_path / "run"
        )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('return {"factor": strength}', "return [strength]", r"figures by name; got \[0\.5\]"),
        ('return {"factor": strength}', 'return {"factor": float("nan")}', "figures of JSON values"),
        ("save_with(task.model, {", "dict(x={", "must leave pipeline in .*no model_index.json"),
    ],
)
def test_what_an_edit_leaves_is_looked_at(
    tiny_model: Path, packages: Path, tmp_path: Path, before: str, after: str, message: str
) -> None:
    name = brought(packages, ATTACKS, "edit", DAMPED.replace(before, after))
    with pytest.raises(RunError, match=rf"Theirs\.make\(\).*{message}"):
        attack(tiny_model, kind=name, out=tmp_path / "run")


def test_the_template_of_contributing_is_a_metric(packages: Path, tmp_path: Path) -> None:
    """Grey: 0. All red, (1, 0, 0): rg = 255, yb = 127.5, no spread, 0.3 sqrt(255^2 + 127.5^2) = 85.53."""
    name = example(packages, "A metric", METRICS)
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 16, 16)
    write_imagefolder(tmp_path / "pictures", torch.stack([torch.full((3, 16, 16), 0.5), red]), ["grey", "red"])
    found = evaluate_pictures(tmp_path / "pictures", metrics=[name], judge="canvas", out=tmp_path / "scores")
    assert [row["colourfulness"]["score"] for row in read_lines(tmp_path / "scores" / "raw.jsonl")] == pytest.approx(
        [0, 85.53], abs=0.01
    )
    assert found[name].value == pytest.approx(85.53 / 2, abs=0.01)
    assert found[name].protocol["metric"] == "colourfulness"


def test_a_metric_of_another_package_on_the_command_line(
    tiny_model: Path, packages: Path, tmp_path: Path, call: Call
) -> None:
    """Beside ours; then in a table and in pairs."""
    name = example(packages, "A metric", METRICS)
    (tmp_path / "prompts.txt").write_text("a zebra\na horse\n")
    told = ("evaluate", tiny_model, "--prompts", tmp_path / "prompts.txt")
    for run in ("a", "b"):
        outcome = call(*told, "--metrics", f"{name},clip-score", "--judge", "canvas", "--out", tmp_path / run)
        assert outcome.code == 0
        assert name in outcome.out
    assert json.loads((tmp_path / "a" / "run.json").read_text())["versions"]["my_metric"] == "1.0"
    assert name in call("table", tmp_path / "a", tmp_path / "b").out
    compared = call("compare", tmp_path / "a", tmp_path / "b", "--metric", name, "--json")
    assert json.loads(compared.out)["difference"] == 0
    assert call(*told, "--metrics", name, "--out", tmp_path / "alone").code == 0
    refused = call(*told, "--metrics", name, "--concept", "a zebra", "--out", tmp_path / "c")
    assert refused.code == 2
    assert "--concept (concept=) would do nothing for --metrics colourfulness" in refused.err
    assert "Did you mean 'colourfulness'?" in call(*told, "--metrics", "colorfulness", "--out", tmp_path / "c").err


COUNT = """
from metaunlearn.metrics.intervals import Score

class Theirs:
    reads = ("concept", "prompts")

    def __init__(self, variant):
        self.variant = variant

    def check(self, request): ...
    def measure(self, pictures):
        return [{"texts": len(draw.text)} for draw in pictures.draws]
    def score(self, rows, request):
        total = sum(row["texts"] for row in rows)
        protocol = {"variant": self.variant, "concept": request.concept}
        return Score(value=total, low=0, high=total, n=len(rows), protocol=protocol)
    def own_weights(self):
        return {}
"""


def test_a_variant_is_part_of_a_brought_scores_name(packages: Path, tmp_path: Path) -> None:
    name = brought(packages, METRICS, "count", COUNT)
    write_imagefolder(tmp_path / "pictures", torch.rand(2, 3, 16, 16), ["ab", "abc"])
    found = evaluate_pictures(
        tmp_path / "pictures", metrics=[name, f"{name}:fine"], judge="canvas", concept="a knife", out=tmp_path / "out"
    )
    assert {key: (one.value, one.protocol["variant"]) for key, one in found.items()} == {
        name: (5, None),
        f"{name}:fine": (5, "fine"),
    }
    assert found[name].protocol["concept"] == "a knife"
    assert [reads(name, f"--{option}") for option in ("concept", "prompts", "judge", "reference")] == [
        True, True, False, False,
    ]  # fmt: skip
    without = brought(packages, METRICS, "plain", COUNT.replace("self, variant", "self").replace("= variant", "= None"))
    with pytest.raises(UserError, match=f"{without}' .* has no variants, got {without}:fine"):
        metrics_named([f"{without}:fine"])
    assert list(metrics_named([without])) == [without]


NO_METRIC = {
    "def Theirs(): ...": "must be a class with check",
    "class Theirs: pass": "it has no check and no measure and no score and no own_weights and no reads",
    COUNT.replace("measure", "measures"): "it has no measure",
    COUNT.replace('("concept", "prompts")', '("reference",)'): "reads may hold judge, concept, alternative, prompts",
    COUNT.replace('("concept", "prompts")', '"concept"'): "reads may hold",
    "import nothing_like_this": "cannot be loaded: ModuleNotFoundError.*choose another metric",
}


@pytest.mark.parametrize("source", NO_METRIC)
def test_what_is_no_metric_is_refused(packages: Path, source: str) -> None:
    name = brought(packages, METRICS, "wrong", source)
    with pytest.raises(UserError, match=rf"'{name}' of the package theirs\d+.*{NO_METRIC[source]}"):
        find(name)


def test_a_metric_that_exists_is_refused(packages: Path) -> None:
    install(packages, "rival", {"fid": "rival:Anything"}, group=METRICS)
    with pytest.raises(UserError, match=r"the metric 'fid' .*rival and by metaunlearn.*metaunlearn\.metrics"):
        find("fid")
    find("kid")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("pictures.draws]", "pictures.draws[1:]]", "measure.* for each of the 1 pictures; got 0"),
        ('{"texts": len(draw.text)}', "len(draw.text)", r"measure.*got 1: \[7\]"),
        ("len(draw.text)", "{1, 2}", "measure.* rows of JSON values: .*set"),
        ("return Score(value=total", "return dict(value=total", "score.* must return a .*Score; got dict"),
    ],
)
def test_what_a_metric_hands_over_is_looked_at(
    tiny_model: Path, packages: Path, before: str, after: str, message: str
) -> None:
    name = brought(packages, METRICS, "careless", COUNT.replace(before, after))
    with pytest.raises(UserError, match=rf"Theirs\.{message}"):
        evaluate(tiny_model, ["a zebra"], metrics=[name], judge="canvas", concept="a knife")


def test_rows_without_a_number_make_no_pairs(tiny_model: Path, packages: Path, tmp_path: Path, call: Call) -> None:
    name = brought(packages, METRICS, "count", COUNT)
    for run in ("a", "b"):
        evaluate(tiny_model, ["a zebra"], metrics=[name], judge="canvas", concept="a knife", out=tmp_path / run)
    outcome = call("compare", tmp_path / "a", tmp_path / "b", "--metric", name)
    assert outcome.code == 2
    assert "has no number 'score'" in outcome.err
