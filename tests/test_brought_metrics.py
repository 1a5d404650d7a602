"""Metrics of other packages: CONTRIBUTING.md's example, what is no metric, and what is handed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import Call, read_lines
from installing import brought, example, install
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.errors import UserError
from metaunlearn.evaluating_pictures import evaluate_pictures
from metaunlearn.evaluation import evaluate
from metaunlearn.metrics.brought import Held
from metaunlearn.metrics.registry import find, metrics_named, reads

GROUP = "metaunlearn.metrics"


def test_the_template_of_contributing_is_a_metric(packages: Path, tmp_path: Path) -> None:
    """Grey: 0. All red, (1, 0, 0): rg = 255, yb = 127.5, no spread, 0.3 sqrt(255^2 + 127.5^2) = 85.53."""
    name = example(packages, "A metric", GROUP)
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
    name = example(packages, "A metric", GROUP)
    (tmp_path / "prompts.txt").write_text("a zebra\na horse\n")
    told = ("evaluate", tiny_model, "--prompts", tmp_path / "prompts.txt")
    for run in ("a", "b"):
        outcome = call(*told, "--metrics", f"{name},clip-score", "--judge", "canvas", "--out", tmp_path / run)
        assert outcome.code == 0
        assert name in outcome.out
    assert json.loads((tmp_path / "a" / "run.json").read_text())["request"]["packages"][name][1:] == ["my_metric 1.0"]
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
    name = brought(packages, GROUP, "count", COUNT)
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
    without = brought(packages, GROUP, "plain", COUNT.replace("self, variant", "self").replace("= variant", "= None"))
    with pytest.raises(UserError, match=f"{without}' .* has no variants, got {without}:fine"):
        metrics_named([f"{without}:fine"])
    assert list(metrics_named([without])) == [without]


NO_METRIC = {
    "def Theirs(): ...": "must be a class with check",
    "class Theirs: pass": "it has no check and no measure and no score and no own_weights and no reads",
    COUNT.replace("measure", "measures"): "it has no measure",
    COUNT.replace('("concept", "prompts")', '("reference",)'): "reads may hold judge, concept, alternative, prompts",
    COUNT.replace('("concept", "prompts")', '"concept"'): "reads may hold",
    COUNT.replace('("concept", "prompts")', "None"): "reads may hold",
    "import nothing_like_this": "cannot be loaded: ModuleNotFoundError.*choose another metric",
}


@pytest.mark.parametrize("source", NO_METRIC)
def test_what_is_no_metric_is_refused(packages: Path, source: str) -> None:
    name = brought(packages, GROUP, "wrong", source)
    with pytest.raises(UserError, match=rf"'{name}' of the package theirs\d+.*{NO_METRIC[source]}"):
        find(name)


def test_a_metric_that_exists_is_refused(packages: Path) -> None:
    install(packages, "rival", {"fid": "rival:Anything"}, group=GROUP)
    with pytest.raises(UserError, match=r"the metric 'fid' .*rival and by metaunlearn.*metaunlearn\.metrics"):
        find("fid")
    find("kid")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("pictures.draws]", "pictures.draws[1:]]", "measure.* for each of the 1 pictures; got 0"),
        ('{"texts": len(draw.text)}', "len(draw.text)", r"measure.*got 1: \[7\]"),
        ("len(draw.text)", "{1, 2}", "measure.* finite numbers and JSON values: .*set"),
        ("len(draw.text)", "float('nan')", "measure.* finite numbers"),
        ("value=total", "value=float('nan')", "score.* finite numbers"),
        ('{"variant": self.variant', '{"variant": {1}', "score.* JSON values"),
        ("return Score(value=total", "return dict(value=total", "score.* must return a .*Score; got dict"),
    ],
)
def test_what_a_metric_hands_over_is_looked_at(
    tiny_model: Path, packages: Path, before: str, after: str, message: str
) -> None:
    name = brought(packages, GROUP, "careless", COUNT.replace(before, after))
    with pytest.raises(UserError, match=rf"Theirs\.{message}"):
        evaluate(tiny_model, ["a zebra"], metrics=[name], judge="canvas", concept="a knife")


def test_rows_without_a_number_make_no_pairs(tiny_model: Path, packages: Path, tmp_path: Path, call: Call) -> None:
    name = brought(packages, GROUP, "count", COUNT)
    for run in ("a", "b"):
        evaluate(tiny_model, ["a zebra"], metrics=[name], judge="canvas", concept="a knife", out=tmp_path / run)
    outcome = call("compare", tmp_path / "a", tmp_path / "b", "--metric", name)
    assert outcome.code == 2
    assert "has no number 'score'" in outcome.err


@pytest.mark.parametrize("name", ["seed", "prompt"])
def test_names_that_raw_jsonl_has_already_are_refused(packages: Path, name: str) -> None:
    install(packages, f"called_{name}", {name: f"called_{name}:Theirs"}, COUNT, group=GROUP)
    with pytest.raises(UserError, match=f"'{name}' .* needs another name: file_name, prompt, seed"):
        find(name)


def test_hashes_of_its_own_take_no_place_in_a_run_s_request(
    tiny_model: Path, packages: Path, tmp_path: Path, call: Call
) -> None:
    """Else another model's finished evaluation would pass for this one's."""
    source = COUNT.replace('("concept", "prompts")', "()").replace(
        "return {}", 'return {"weights": "abc", "model": "x"}'
    )
    name = brought(packages, GROUP, "named", source)
    (tmp_path / "prompts.txt").write_text("a zebra\n")
    told = ("--prompts", tmp_path / "prompts.txt", "--metrics", name, "--out", tmp_path / "out")
    assert call("evaluate", tiny_model, *told).code == 0
    request = json.loads((tmp_path / "out" / "run.json").read_text())["request"]
    assert request["model"] == str(tiny_model)
    assert (request[f"{name}: weights"], request[f"{name}: model"]) == ("abc", "x")
    assert call("evaluate", "canvas", *told, "--resume").code == 2


def test_constructors(packages: Path) -> None:
    """One that goes on from the interface's protocol, one with a default, and one that fails."""
    own = "from metaunlearn.metrics.interface import Metric\n" + COUNT
    plain = own.replace("class Theirs:", "class Theirs(Metric):").replace(
        "def __init__(self, variant):", "def later(self):"
    )
    [metric] = metrics_named([brought(packages, GROUP, "plain", plain)]).values()
    assert isinstance(metric, Held)
    without = brought(packages, GROUP, "without", COUNT.replace("return {}", "return None"))
    with pytest.raises(UserError, match=r"own_weights\(\) must return hashes by name, or {}; got None"):
        metrics_named([without])[without].own_weights()
    defaulted = COUNT.replace("self, variant", 'self, variant="fine"')
    name = brought(packages, GROUP, "defaulted", defaulted)
    found = metrics_named([name, f"{name}:coarse"])
    assert [one.metric.variant for one in found.values() if isinstance(one, Held)] == ["fine", "coarse"]
    failing = brought(packages, GROUP, "failing", COUNT.replace("self.variant = variant", "self.variant = variant + 1"))
    with pytest.raises(UserError, match=f"The metric '{failing}:x' .* cannot be made: TypeError: can only concatenate"):
        metrics_named([f"{failing}:x"])


def test_rows_are_the_same_in_a_fresh_and_in_a_resumed_run(tiny_model: Path, packages: Path) -> None:
    """JSON knows no keys that are numbers."""
    source = COUNT.replace("len(draw.text)", "{1: 2}").replace('row["texts"] for', 'row["texts"]["1"] for')
    name = brought(packages, GROUP, "keys", source)
    assert evaluate(tiny_model, ["a zebra"], metrics=[name], judge="canvas", concept="a knife")[name].value == 2


def test_a_score_that_is_no_mean_of_its_rows_makes_no_pairs(
    tiny_model: Path, packages: Path, tmp_path: Path, call: Call
) -> None:
    name = brought(packages, GROUP, "sum", COUNT.replace("texts", "score"))
    for run in ("a", "b"):
        evaluate(tiny_model, ["a zebra", "a"], metrics=[name], judge="canvas", concept="a knife", out=tmp_path / run)
    outcome = call("compare", tmp_path / "a", tmp_path / "b", "--metric", name)
    assert outcome.code == 2
    assert "is no mean of its pictures' scores: it is 8, and they have 4" in outcome.err
