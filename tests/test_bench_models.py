"""bench on a model that is not Canvas: prompts, pictures and models that the call names; what is missing; Figure 6.

The model is a tiny pipeline in the true classes, the judge Canvas's, the safety checker and the NSFW head tiny ones.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench_grids import TINY, changed, counted, write_recipe
from conftest import Call
from metaunlearn.bench.inputs import Inputs
from metaunlearn.bench.kinds import drawn
from metaunlearn.bench.plan import Plan, make_plan
from metaunlearn.bench.recipe import Grid, read_bench
from metaunlearn.bench.results import Measured, pooled
from metaunlearn.bench.run import run_grid
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.draws import draws_for
from metaunlearn.errors import UserError
from metaunlearn.evaluation import evaluate
from metaunlearn.generation import BATCH, Sampling, write_sampling
from metaunlearn.metrics.intervals import wilson
from metaunlearn.metrics.judge import load_judge
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.models import load_pipeline
from metaunlearn.recipe import read_recipe
from metaunlearn.settings import resolve
from tiny_judges import save_checker, save_clip
from tiny_models import NEW

SD: dict[str, Any] = {
    "base": "nobody/no-such-model",
    "judge": "canvas",
    "methods": ["esd-x-1"],
    "models": ["original", "meta-unlearn"],
    "set": TINY["set"],
    "concepts": [
        {"name": "cutlery", "text": "knife", "related": ["scissors"], "retain": ["a rocket", "a dog"], "steps": [1, 2]}
    ],
    "attacks": [
        {"name": "HRM-m", "data": "hrm-m"},
        {
            "name": "UnlearnDiffAtk", "kind": "unlearndiffatk", "prompts": {"file": "harmful"},
            "set": {
                "prefix_tokens": 1, "first_timestep": 500, "timestep_stride": 500, "steps_per_timestep": 1,
                "sampling_steps": 2,
            },
        },
    ],
    "prompts": [
        {"name": "concept", "file": "harmful", "scores": {"concept": "concept", "unsafe": "unsafe"}, "sensitive": True,
         "shown": 1},
        {"name": "benign", "texts": ["a rocket", "a dog"], "at": ["before", "last"], "reference": "real",
         "scores": {"clip_score": "clip-score", "fid": "fid"}, "shown": 2},
    ],
    "pictures": {"roles": ["concept", "benign"], "steps": "all"},
}  # fmt: skip
KINDS = {"pictures": 1, "given": 1, "erase": 1, "attack": 1, "drawn": 7, "evaluate": 4, "adversarial": 1}
"""Both sets are drawn by the original, the erased and the last attacked model, and the harmful one by that between."""


def plan_with(grid: dict[str, Any], given: dict[str, Path]) -> Plan:
    resolved = resolve(Grid, grid)
    use = [f"{name}={path}" for name, path in given.items() if name != "harmful"]
    return make_plan(resolved, inputs=Inputs(resolved, [f"harmful={given['harmful']}"], use))


def call_of(recipe: Path, given: dict[str, Path], *more: str) -> tuple[str, ...]:
    use = [part for name, path in given.items() if name != "harmful" for part in ("--use", f"{name}={path}")]
    return ("bench", str(recipe), *more, "--prompts", str(given["harmful"]), *use)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """What the grid asks for, by name."""
    folder = tmp_path_factory.mktemp("given")
    generator = torch.Generator().manual_seed(0)
    (folder / "harmful.txt").write_text("a knife\na knife in noto style\n")
    write_imagefolder(folder / "hrm-m", torch.rand(3, 3, 32, 32, generator=generator), ["a knife"] * 3)
    write_imagefolder(folder / "real", torch.rand(3, 3, 32, 32, generator=generator), ["a dog"] * 3)
    return {
        "harmful": folder / "harmful.txt", "hrm-m": folder / "hrm-m", "real": folder / "real", "base": tiny_model,
        "unsafe": save_checker(folder / "checker"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def sd_grid(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Path]) -> Path:
    """A folder with the recipe ``grid.toml`` and its whole bench in ``out``."""
    folder = tmp_path_factory.mktemp("sd")
    recipe = write_recipe(folder / "grid.toml", SD)
    use = [f"{name}={path}" for name, path in given.items() if name != "harmful"]
    found = run_grid(str(recipe), folder / "out", prompts=[str(given["harmful"])], use=use)
    assert found["made"] == sum(KINDS.values())
    return folder


def test_a_grid_on_another_model_is_measured_on_given_prompts(sd_grid: Path) -> None:
    found = json.loads((sd_grid / "out" / "grid" / "results.json").read_text())
    scores = {(row["model"], row["attack"], row["step"]): row["scores"] for row in found["rows"]}
    whole = {"concept", "unsafe", "clip_score", "fid"}
    assert {place: set(names) for place, names in scores.items()} == {
        ("original", "before", 0): whole,
        ("meta-unlearn", "before", 0): whole,
        ("meta-unlearn", "HRM-m", 1): {"concept", "unsafe"},
        ("meta-unlearn", "HRM-m", 2): whole,
        ("meta-unlearn", "UnlearnDiffAtk", 0): {"asr", "asr_without_attack"},
    }
    assert {score["n"] for names in scores.values() for score in names.values()} == {2}
    tables = (sd_grid / "out" / "grid" / "tables.md").read_text()
    assert "| method | model | before | HRM-m 1 | HRM-m 2 |" in tables
    assert "cutlery: unsafe score (%)" in tables
    assert "| method | model | UnlearnDiffAtk |" in tables


def _seeded() -> dict[str, Any]:
    """Three seeds of an original that is asked for pictures of two prompts, thirty of each."""
    harmful = {"name": "concept", "file": "harmful", "images": 30, "scores": {"concept": "concept"}}
    grid = changed("concepts", 0, "seeds", to=[0, 1, 2], of=changed("prompts", to=[harmful], of=SD))
    return {**grid, "models": ["original"], "attacks": []}


def test_the_noise_of_two_seeds_is_never_the_same(given: dict[str, Path]) -> None:
    asked = {"harmful": given["harmful"], "base": given["base"]}
    drawn = [cell.call for cell in plan_with(_seeded(), asked).cells.values() if cell.kind == "drawn"]
    prompts = [Prompt(**record) for record in drawn[0]["prompts"]]
    seeds = [
        draw.seed
        for call in drawn
        for draw in draws_for(prompts, images=call["images"], seed=call["seed"], guidance_scale=1.0)
    ]
    assert len(drawn) == 3
    assert len(set(seeds)) == len(seeds) == 3 * 60
    assert min(seeds) == 0


def test_an_original_asked_with_the_prompts_own_seeds_counts_once(given: dict[str, Path], tmp_path: Path) -> None:
    """Its three seeds are one cell and 60 pictures; those of a model that was trained anew are three."""
    (tmp_path / "own.csv").write_text("prompt,evaluation_seed\na knife,5\na fork,9\n")
    own = {"harmful": tmp_path / "own.csv", "base": given["base"]}
    plan = plan_with(_seeded(), own)
    assert len(plan.rows) == 3
    assert sorted(cell.kind for cell in plan.cells.values()) == ["drawn", "evaluate"]
    shown = {"concept": {"value": 50.0, "low": 0.0, "high": 0.0, "n": 60, "hits": 30, "protocol": "p"}}
    rows = [Measured(row, row.cell.name, shown) for row in plan.rows]
    together = pooled(rows, "concept")
    expected = wilson(30, 60)
    assert together is not None
    assert (together.n, together.low, together.high) == (60, expected.low, expected.high)
    assert together.by_seed == {0: 50.0, 1: 50.0, 2: 50.0}
    trained = plan_with({**_seeded(), "models": ["unlearn"]}, own)
    assert len([cell for cell in trained.cells.values() if cell.kind == "drawn"]) == 3


def test_the_page_shows_the_roles_and_steps_that_the_recipe_names(sd_grid: Path) -> None:
    """One harmful picture, blurred, in 4 states, and two benign ones in 3: those of step 1 are not asked for."""
    page = (sd_grid / "out" / "grid" / "report.html").read_text()
    assert page.count("<img ") == 4 + 2 * 3
    assert page.count('class="veil"') == 4
    assert "seed 0, benign" in page


def test_the_page_says_with_what_the_grid_was_called(sd_grid: Path, given: dict[str, Path]) -> None:
    """Else its command would be refused, for what the recipe asks for is missing."""
    page = (sd_grid / "out" / "grid" / "report.html").read_text()
    assert f"--prompts {given['harmful']} --use hrm-m={given['hrm-m']} --use real={given['real']}" in page


def test_what_was_related_reaches_the_erasing(sd_grid: Path) -> None:
    out = sd_grid / "out" / "cells"
    asked = json.loads((next(out.glob("erase-*")) / "run.json").read_text())["request"]
    assert (asked["concepts"], asked["related"], asked["retain"]) == (["knife"], ["scissors"], ["a rocket", "a dog"])
    texts = (next(out.glob("pictures-*")) / "related" / "metadata.jsonl").read_text()
    assert "scissors" in texts and "knife" not in texts  # noqa: PT018


def test_pictures_shown_are_those_of_the_measured_prompts(sd_grid: Path) -> None:
    for cell in (sd_grid / "out" / "cells").glob("evaluate-*"):
        samples = json.loads((cell / SCORES_FILE).read_text())["samples"]
        assert samples[0] == {
            "role": "concept", "prompt": "a knife", "seed": 0, "file": "concept-0000.png", "sensitive": True
        }  # fmt: skip
        assert all((cell / "samples" / sample["file"]).is_file() for sample in samples)
        assert not (cell / "kept").exists()


def test_a_state_has_the_scores_that_evaluate_gives_it(sd_grid: Path, given: dict[str, Path]) -> None:
    """Protocol and all, though its pictures lie in a cell of their own."""
    [row] = [row for row in json.loads((sd_grid / "out/grid/results.json").read_text())["rows"]
             if row["model"] == "original"]  # fmt: skip
    found = json.loads((sd_grid / "out/cells" / row["cell"] / SCORES_FILE).read_text())["scores"]
    benign = [Prompt("a rocket"), Prompt("a dog")]
    scores = evaluate(
        load_pipeline(given["base"]), benign, metrics=["clip-score", "fid"], judge=load_judge("canvas"),
        concept="knife", reference=given["real"],
    )  # fmt: skip
    for name, score in zip(("clip_score", "fid"), scores.values(), strict=True):
        assert {key: found[name][key] for key in score.to_dict()} == score.to_dict()


def test_another_metric_trains_and_draws_nothing_again(given: dict[str, Path], tmp_path: Path) -> None:
    """Though what the attack left goes as soon as its pictures are there."""
    grid = changed("keep_checkpoints", to=False, of=changed("attacks", to=SD["attacks"][:1], of=SD))
    use = [f"{name}={path}" for name, path in given.items() if name != "harmful"]

    def made(**scores: str) -> dict[str, int]:
        other = changed("prompts", 0, "scores", to=scores, of=grid)
        run_grid(
            str(write_recipe(tmp_path / "grid.toml", other)), tmp_path / "out", prompts=[str(given["harmful"])],
            use=[item for item in use if scores != {"concept": "concept"} or not item.startswith("unsafe=")],
        )  # fmt: skip
        return Counter(cell.name.split("-")[0] for cell in (tmp_path / "out/cells").iterdir())

    kinds = {kind: count for kind, count in KINDS.items() if kind not in ("attack", "adversarial")}
    assert made(concept="concept", unsafe="unsafe") == kinds
    assert made(concept="concept") == {**kinds, "evaluate": 2 * kinds["evaluate"]}


def test_a_picture_that_nobody_scores_is_drawn_to_be_shown(given: dict[str, Path]) -> None:
    """And one that nobody shows either is not drawn at all."""
    for scores, shown, first in (({}, 1, [1]), ({}, 0, []), ({"concept": "concept"}, 0, [None])):
        grid = changed("prompts", 0, "shown", to=shown, of=changed("prompts", 0, "scores", to=scores, of=SD))
        cells = plan_with(changed("models", to=["original"], of=grid), given).cells.values()
        assert [
            cell.call["first"] for cell in cells if cell.kind == "drawn" and cell.call["name"] == "concept"
        ] == first


def test_a_first_metric_on_pictures_that_were_shown_draws_none_again(given: dict[str, Path]) -> None:
    """Where all of them were: the page has two."""
    unscored = changed("prompts", 1, "scores", to={}, of=SD)
    before, after = ({cell.name for cell in plan_with(grid, given).cells.values() if cell.kind == "drawn"}
                     for grid in (unscored, SD))  # fmt: skip
    assert before == after


def test_a_half_drawn_cell_goes_on_wherever_it_is_called_from(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is in a folder that the next call names in another way."""
    shutil.copytree(given["base"], tmp_path / "erased")
    monkeypatch.chdir(tmp_path)
    prompts = [{"text": f"a dog {number}"} for number in range(BATCH + 1)]
    call = {"base": "", "name": "benign", "prompts": prompts, "images": 1, "first": None, "seed": 0, "device": "cpu"}

    def stop(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn.make(Path("cell"), **call, erase=Path("erased"), progress=stop)
    first = Path("cell/000000.png")
    first.write_bytes(first.read_bytes() + b"kept")
    drawn.make(Path("cell"), **call, erase=tmp_path / "erased", progress=None)
    assert first.read_bytes().endswith(b"kept")
    assert len(list(Path("cell").glob("*.png"))) == len(prompts)


def test_a_grid_on_xl(given: dict[str, Path], tmp_path: Path) -> None:
    """Two text encoders, as the figures' model has: erased, attacked and measured."""
    NEW["sdxl"]().save_pretrained(tmp_path / "xl", safe_serialization=True)
    write_sampling(tmp_path / "xl", Sampling(steps=2, guidance_scale=2.0))
    grid = changed("attacks", to=SD["attacks"][:1], of=changed("prompts", to=SD["prompts"][1:], of=SD))
    grid = changed("pictures", "roles", to=["benign"], of=grid)
    use = [f"{name}={given[name]}" for name in ("hrm-m", "real")]
    recipe = write_recipe(tmp_path / "grid.toml", grid)
    found = run_grid(str(recipe), tmp_path / "out", use=[*use, f"base={tmp_path / 'xl'}"])
    assert (found["rows"], found["made"]) == (3, 10)  # Nothing is asked at the attack's first step.


def test_only_what_depends_on_an_input_is_made_again(given: dict[str, Path], tmp_path: Path) -> None:
    before = plan_with(SD, given)
    assert counted(before) == KINDS

    def changed_kinds(other: Plan) -> set[str]:
        mine, theirs = ({cell.name: cell.kind for cell in plan.cells.values()} for plan in (before, other))
        return {kind for name, kind in theirs.items() if name not in mine}

    (tmp_path / "other.txt").write_text("a knife\na knife in fluent style\n")
    assert changed_kinds(plan_with(SD, {**given, "harmful": tmp_path / "other.txt"})) == {
        "drawn", "evaluate", "adversarial"
    }  # fmt: skip
    shutil.copytree(given["hrm-m"], tmp_path / "moved")
    assert changed_kinds(plan_with(SD, {**given, "hrm-m": tmp_path / "moved"})) == set()
    (tmp_path / "moved" / "metadata.jsonl").write_text(
        (tmp_path / "moved" / "metadata.jsonl").read_text().replace("a knife", "a blade")
    )
    assert changed_kinds(plan_with(SD, {**given, "hrm-m": tmp_path / "moved"})) == {
        "given", "attack", "drawn", "evaluate"
    }  # fmt: skip
    more = changed("prompts", 0, "scores", to={"concept": "concept"}, of=SD)
    assert changed_kinds(plan_with(more, given)) == {"evaluate"}
    other = changed("concepts", 0, "related", to=["hammer"], of=SD)
    assert changed_kinds(plan_with(other, given)) == {
        "pictures", "erase", "attack", "drawn", "evaluate", "adversarial"
    }  # fmt: skip


def test_a_dry_run_says_what_is_missing(tmp_path: Path, call: Call) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", SD)
    outcome = call("bench", recipe, "--out", tmp_path / "out", "--dry-run")
    assert outcome.code == 0
    for text in (
        "hf download nobody/no-such-model", "--prompts harmful=FILE", "--use hrm-m=DIR", "metaunlearn data make hrm-m",
        "--use real=DIR", "safety checker",
    ):  # fmt: skip
        assert text in outcome.out, text
    # A copy of given pictures is known to take no time; how long the rest takes nobody knows.
    assert f"together: time not known ({sum(KINDS.values()) - KINDS['given']} cells)\n" in outcome.out
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["erase", "1", "0", "1", *["not", "known"] * 2] in lines
    assert ["given", "1", "0", "1", "0", "s", "–"] in lines
    found = json.loads(call("bench", recipe, "--out", tmp_path / "out", "--dry-run", "--json").out)
    assert len(found["todo"]) == sum(KINDS.values())
    assert found["memory_bytes"] is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "to", "says"),
    [
        (("prompts", 0, "scores"), {"concept": "clipscore"}, "there is no metric 'clipscore'.*mean 'clip-score'"),
        (("prompts", 0, "scores"), {"concept": "nudity:mine"}, "no nudity rule 'mine'"),
        (("prompts", 0, "scores"), {"a": "concept", "b": "concept"}, "each metric once; got concept, concept"),
        (("prompts", 0, "scores"), {"fid": "clip-score"}, "'concept' has a score 'fid' as well"),
        (("prompts", 0, "scores"), {"kid": "kid"}, "kid compares with real pictures"),
        (("prompts", 0, "scores"), {"accuracy": "accuracy"}, "accuracy needs a label for every prompt"),
        (("published",), ["table1"], "the paper has no table 'table1'"),
        (("methods",), ["uce", "esd-x-1", "uce-2023"], "methods: 'uce-2023' stands there twice"),
        (("models",), ["original", "original"], "models: 'original' stands there twice"),
        (("concepts", 0, "seeds"), [0, 1, 0], "'cutlery', seeds: 0 stands there twice"),
        (("concepts", 0, "attack"), {"learning_rat": 1e-3}, "no attack has the setting 'learning_rat'.*learning_rate"),
        (("concepts", 0, "data"), {"hrm-mm": "hrm-s"}, "no attack of the grid is given 'hrm-mm'.*'hrm-m'"),
    ],
)  # fmt: skip
def test_what_would_fail_after_the_work_is_refused_before_it(
    place: tuple[Any, ...], to: Any, says: str, given: dict[str, Path], tmp_path: Path, call: Call
) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", changed(*place, to=to, of=SD))
    outcome = call(*call_of(recipe, given, "--out", str(tmp_path / "out"), "--dry-run"))
    assert outcome.code == 2
    assert re.search(says, outcome.err), outcome.err


def test_a_judge_that_only_compares_needs_something_to_compare_with(given: dict[str, Path], tmp_path: Path) -> None:
    clip = {**given, "judge": save_clip(tmp_path / "clip")}
    with pytest.raises(UserError, match=r"knows no labels of its own, so 'cutlery' needs .* alternatives = "):
        plan_with(SD, clip)
    plan_with(changed("concepts", 0, "alternatives", to=["a toy"], of=SD), clip)


def test_a_judge_that_nothing_asks_is_refused() -> None:
    with pytest.raises(UserError, match="nothing asks a judge"):
        Inputs(resolve(Grid, TINY), use=["judge=somewhere"])
    with pytest.raises(UserError, match="harmful was given twice"):
        Inputs(resolve(Grid, SD), ["harmful=a.txt", "harmful=b.txt"])


def test_a_grid_does_not_begin_while_something_is_missing(tmp_path: Path, given: dict[str, Path], call: Call) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", SD)
    outcome = call("bench", recipe, "--out", tmp_path / "out")
    assert (outcome.code, "--use hrm-m=DIR" in outcome.err) == (2, True)
    assert not (tmp_path / "out").exists()
    part = {name: path for name, path in given.items() if name != "hrm-m"}
    outcome = call(*call_of(recipe, part, "--out", str(tmp_path / "out"), "--dry-run", "--only", "attack=before"))
    assert "missing" not in outcome.out  # What is not asked for need not be there.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--use", "hrm-n=x"), "Did you mean 'hrm-m'"),
        (("--use", "x"), "It asks for: base, judge"),
        (("--prompts", "harmfull=x.txt"), "Did you mean 'harmful'"),
        (("--prompts", "nowhere.txt"), "does not exist"),
        (("--use", "hrm-m=nowhere"), "does not exist"),
    ],
)
def test_inputs_that_cannot_be_are_refused(tmp_path: Path, call: Call, arguments: tuple[str, ...], says: str) -> None:
    recipe = write_recipe(tmp_path / "grid.toml", SD)
    outcome = call("bench", recipe, "--out", tmp_path / "out", "--dry-run", *arguments)
    assert (outcome.code, says in outcome.err) == (2, True), outcome.err


@pytest.mark.parametrize(
    ("path", "to", "says"),
    [
        (("measure",), TINY["measure"], "either"),
        (("prompts",), [], "either"),
        (("prompts", 1, "file"), "harmful", "prompts have either"),
        (("prompts", 1, "texts"), [], "prompts have either"),
        (("prompts", 1, "name"), "../benign", "leave out slashes"),
        (("attacks", 0, "data"), "hrm-n", "Did you mean 'hrm-"),
        (("attacks", 1, "data"), "hrm-m", "is on prompts"),
        (("attacks", 0, "success"), "nudity", "not on prompts"),
        (("attacks", 1, "success"), "nudity:rece-9@0.7", "Did you mean 'rece-9@0.6'"),
        (("attacks", 1, "success"), "nude", "expected judge, nudity"),
        (("pictures", "roles"), ["related"], "There are: concept, benign"),
        (("concepts", 0, "texts"), {"harmful": ["a"]}, "no prompts are called"),
    ],
)
def test_grids_that_cannot_be_are_refused(tmp_path: Path, path: tuple[Any, ...], to: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_bench(str(write_recipe(tmp_path / "grid.toml", changed(*path, to=to, of=SD))))


def test_a_detector_may_tell_of_success(given: dict[str, Path]) -> None:
    """Then no judge is asked; the safety checker's folder is the one that the call gives."""
    for success, said in (("nudity:rece-9@0.6",) * 2, ("unsafe", f"unsafe:{given['unsafe']}")):
        plan = plan_with(changed("attacks", 1, "success", to=success, of=SD), given)
        [cell] = [cell for cell in plan.cells.values() if cell.kind == "adversarial"]
        assert (cell.call["success"], cell.missing) == (said, ())


def test_concepts_may_have_prompts_of_their_own(given: dict[str, Path]) -> None:
    grid = copy.deepcopy(SD)
    del grid["prompts"][1]["texts"]
    grid["concepts"][0]["texts"] = {"benign": ["a cat"]}
    plan = plan_with(grid, given)
    sets = {tuple(prompt["text"] for prompt in one["prompts"]) for cell in plan.cells.values()
            if cell.kind == "evaluate" for one in cell.call["sets"]}  # fmt: skip
    assert sets == {("a cat",), ("a knife", "a knife in noto style")}


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    write_recipe(tmp_path / "base.toml", SD)
    own = tmp_path / "own.toml"
    own.write_text(f'extends = "{tmp_path / "base.toml"}"\n[grid]\nattacks = []\nset = {{ steps = 9 }}\n')
    grid, base = read_bench(str(own)).grid, read_bench(str(tmp_path / "base.toml")).grid
    assert (grid.attacks, grid.set, grid.prompts) == ((), {**base.set, "steps": 9}, base.prompts)
    own.write_text(f'extends = "{own}"\n')
    with pytest.raises(UserError, match="extends itself"):
        read_recipe(str(own))


def test_the_nsfw_score_needs_its_head(given: dict[str, Path], tmp_path: Path) -> None:
    grid = changed("prompts", 0, "scores", to={"nsfw": "nsfw"}, of=SD)
    missing = {text for cell in plan_with(grid, given).cells.values() for text in cell.missing}
    assert [text for text in missing if "metaunlearn convert laion-nsfw-l14" in text] == [*missing]
    save_file({"a": torch.zeros(1)}, tmp_path / "head.safetensors")
    plan = plan_with(grid, {**given, "nsfw": tmp_path / "head.safetensors"})
    metrics = {one["scores"]["nsfw"] for cell in plan.cells.values() if cell.kind == "evaluate"
               for one in cell.call["sets"] if "nsfw" in one["scores"]}  # fmt: skip
    assert metrics == {f"nsfw:{tmp_path / 'head.safetensors'}"}
    assert not any(cell.missing for cell in plan.cells.values())


def test_fid_on_the_features_of_inception(given: dict[str, Path], tmp_path: Path) -> None:
    """The recipe says which weights, the call where they lie; the file is part of the keys, and its path is not."""
    scores = {"fid": "fid:inception@pytorch-fid", "kid": "kid:inception", "clip_score": "clip-score:logits"}
    grid = changed("prompts", 1, "scores", to=scores, of=SD)
    missing = {text for cell in plan_with(grid, given).cells.values() for text in cell.missing}
    assert [text for text in missing if "metaunlearn convert inception-fid" in text] == [*missing]

    def asked(name: str, number: float) -> tuple[set[str], set[str]]:
        file = tmp_path / f"{name}.safetensors"
        save_file({"a": torch.tensor([number])}, file)
        plan = plan_with(grid, {**given, "inception": file})
        assert not any(cell.missing for cell in plan.cells.values())
        calls = [one["scores"] for cell in plan.cells.values() if cell.kind == "evaluate" for one in cell.call["sets"]]
        return {call["fid"] for call in calls if "fid" in call}, set(plan.cells)

    (one, cells), (other, same), (_, different) = asked("a", 1.0), asked("b", 1.0), asked("c", 2.0)
    assert one == {f"fid:{tmp_path / 'a.safetensors'}@pytorch-fid"} != other
    assert cells == same != different


def test_a_recipe_names_no_file_of_weights(given: dict[str, Path]) -> None:
    grid = changed("prompts", 1, "scores", to={"fid": "fid:here.safetensors@pytorch-fid"}, of=SD)
    with pytest.raises(UserError, match="write 'fid:inception@pytorch-fid', and give the file with --use inception="):
        plan_with(grid, given)


def test_figures_that_no_judge_sees_need_none(given: dict[str, Path]) -> None:
    """Of prompts whose metrics bring networks of their own."""
    networks = changed("prompts", 0, "scores", to={"unsafe": "unsafe"}, of=SD)
    for metric, needed in (("fid:inception", False), ("fid", True)):
        grid = changed("prompts", 1, "scores", to={"fid": metric}, of=networks)
        grid = {**grid, "judge": "", "attacks": [one for one in grid["attacks"] if "prompts" not in one]}
        with pytest.raises(UserError, match="asks a judge") if needed else nullcontext():
            plan_with(grid, {name: path for name, path in given.items() if name != "judge"})


def test_figure_6_is_on_the_page(tmp_path: Path) -> None:
    grid = changed("attacks", to=[], of=changed("diagnosed", to=True))
    grid["set"] |= {"diagnostics_every": 1, "diagnostics_subset": "first-xattn"}
    run_grid(str(write_recipe(tmp_path / "grid.toml", grid)), tmp_path / "out")
    page = (tmp_path / "out" / "grid" / "report.html").read_text()
    assert re.search(r"regression line from [+-]\d\.\d+ at step 1 to [+-]\d\.\d+ at 4", page)
    undiagnosed = make_plan(resolve(Grid, changed("diagnosed", to=False, of=grid)))
    erased = {cell.name for cell in undiagnosed.cells.values() if cell.kind == "erase"}
    assert not any((tmp_path / "out" / "cells" / name).exists() for name in erased)
