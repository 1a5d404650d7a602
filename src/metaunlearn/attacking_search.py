"""``attack --search``: the worst that finetuning can do within a budget of steps.

The eraser's claim is about the strongest attack, not about the one whose settings happened to be tried. Each
combination of learning rate, optimiser and subset is a trial in a folder of its own, and the judge says how much of the
concept is back. The strongest is then judged again on pictures of fresh seeds: the best of many noisy figures is too
good, the same trial's next one is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from metaunlearn.attacking import attack
from metaunlearn.attacks.finetune import Finetune
from metaunlearn.attacks.registry import configure
from metaunlearn.config import InnerOptimizer
from metaunlearn.data.imagefolder import fingerprint, read_imagefolder
from metaunlearn.data.prompts import Prompt, PromptsGiven, prompts_of
from metaunlearn.data.wording import listed
from metaunlearn.devices import check_device
from metaunlearn.errors import RunError, UserError
from metaunlearn.evaluation import Evaluation, plan
from metaunlearn.files import needed_path, read_json, write_json
from metaunlearn.metrics.default_judge import judge_for
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge
from metaunlearn.metrics.unlearncanvas import looked_for
from metaunlearn.models import TextToImageModel, adapt, device_for, load_pipeline, read_only
from metaunlearn.overrides import Overrides, as_overrides, parse_overrides
from metaunlearn.parameters import subset
from metaunlearn.recipe import RecipeFile, read_recipe, recipe_for
from metaunlearn.runs import RESULTS_FILE, Progress, RunFolder, named
from metaunlearn.settings import Listed, Settings, resolve, whole_number

TRIALS = "search.json"


class Search(Settings):
    """The grid; every other setting of a trial is the recipe's for ``finetune``."""

    factors: Annotated[tuple[float, ...], Listed] = Field(default=(0.3, 1.0, 3.0), min_length=1)
    """Learning rates, as multiples of the recipe's."""
    optimizers: Annotated[tuple[InnerOptimizer, ...], Listed] = Field(default=("adamw", "sgd"), min_length=1)
    """Optimisers."""
    sgd_factor: float = Field(default=1000.0, gt=0)
    """SGD and momentum take learning rates this much larger: they do not normalise the gradient, as Adam does."""
    subsets: Annotated[tuple[str, ...], Listed] = Field(default=("f", "x"), min_length=1)
    """Denoiser parameters that are trained."""
    images: int = Field(default=4, gt=0)
    """Pictures of each prompt that the judge sees after a trial."""


@dataclass(frozen=True)
class Trial:
    """One combination."""

    optimizer: str
    learning_rate: float
    subset: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.optimizer}-{self.learning_rate:g}-{self.subset}"

    @property
    def overrides(self) -> list[str]:
        """For ``--set``."""
        return as_overrides({"optimizer": self.optimizer, "learning_rate": self.learning_rate, "subset": self.subset})


def search_attacks(
    model: Any,
    data: Path | str,
    *,
    steps: int,
    prompts: PromptsGiven,
    judge: Judge | str | None = None,
    concept: str,
    alternatives: Sequence[str] = (),
    recipe: Path | str | None = None,
    overrides: Overrides = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    out: Path | str,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Finetune ``model`` for ``steps`` steps with every combination of the grid; returns the summary.

    ``prompts`` and ``judge`` are as :func:`~metaunlearn.evaluation.evaluate` takes them.
    ``overrides`` are settings of :class:`Search` and of the attack ``finetune``. ``out`` gets ``trials/NAME`` with the
    pipeline of each, ``search.json`` with every trial's concept score, and ``results.json`` with ``concept`` (before
    the attack) and ``concept_worst_case`` (the strongest trial, on fresh seeds). ``device`` is as for
    :func:`~metaunlearn.erasing.erase`.
    """
    data, out = needed_path(data, "data=, --data DIR"), needed_path(out, "out=, --out DIR")
    device = check_device(device_for(model, device))
    pipeline = read_only(model, device=device)
    adapter = adapt(pipeline, device)
    prompts, alternatives, seed = prompts_of(prompts), listed(alternatives), whole_number(seed, "seed=, --seed")
    judge = judge_for(adapter.pipeline, judge, labels=looked_for(concept, alternatives), device=device)
    recipe = str(recipe or recipe_for(adapter))
    grid, rest, finetune = _settings(read_recipe(recipe), as_overrides(overrides))
    steps = whole_number(steps, "steps=, --steps N")
    if steps < 1:
        raise UserError(f"a search needs a budget of at least 1 step (steps=, --steps N); got {steps}.")
    for which in grid.subsets:
        subset(adapter.parameter_names, which, setting="subsets")
    read_imagefolder(data, size=adapter.image_size)
    trials = _trials(grid, finetune.learning_rate)
    judged = _Judged(prompts, judge, concept, alternatives, grid.images, seed)
    judged.plan(adapter)  # What the judge cannot do is refused now.
    request = {
        "command": "attack", "kind": "finetune", "search": grid.model_dump(mode="json"), "steps": steps,
        "model": named(model),
        "weights": adapter.fingerprint(), "data": fingerprint(data), "recipe": recipe,
        "settings": finetune.model_dump(mode="json"), "prompts": [_asked(prompt) for prompt in prompts],
        "judge": judge.fingerprint, "concept": concept, "alternatives": list(alternatives), "seed": seed,
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume, alone=True)
    if folder.complete_before:
        return {**folder.summary(), "out": str(out), "results": read_json(out / RESULTS_FILE)}

    with folder.alone():
        before = judged.score(adapter, out / "before")
        shared = _Trials(
            pipeline=pipeline, data=data, steps=steps, recipe=recipe, overrides=rest, seed=seed, device=device,
            folder=out / "trials", judged=judged,
        )  # fmt: skip
        table = []
        for number, trial in enumerate(trials, start=1):
            table.append(shared.run(trial))
            write_json(out / TRIALS, table)
            if progress is not None:
                progress("searching", number, len(trials))
        finished = [row for row in table if "concept" in row]
        if not finished:
            raise RunError("no trial's loss stayed finite; give smaller learning rates (--set factors=...).")
        worst = max(finished, key=lambda row: row["concept"]["value"])
        attacked = adapt(load_pipeline(shared.pipeline_of(worst["trial"])), device)
        fresh = judged.score(attacked, out / "worst-case", fresh=True)
        searched = {"of": len(trials), "steps": steps, "search": grid.model_dump(mode="json")}
        # Which trial won is a finding, as the score is: the worst cases of two models compare whichever it was.
        fresh = fresh.stamped(attack=searched, trial=worst["trial"])
        results = {"concept": before.to_dict(), "concept_worst_case": fresh.to_dict()}
        write_json(out / RESULTS_FILE, results)
        folder.finish(kind="finetune", trials=len(trials), worst=worst["trial"])
    return {**folder.summary(), "out": str(out), "results": results}


def _settings(recipe: RecipeFile, overrides: Sequence[str]) -> tuple[Search, list[str], Finetune]:
    """The grid, what is left of the overrides for the trials, and the trials' settings where the grid is silent."""
    own = {key: value for key, value in parse_overrides(overrides).items() if key in Search.model_fields}
    rest = [item for item in overrides if item.partition("=")[0].strip() not in own]
    varied = {"optimizer": "optimizers", "subset": "subsets"}
    for key in parse_overrides(rest):
        if key in varied:
            raise UserError(f"a search varies {key}; say which ones with --set {varied[key]}=A,B instead.")
    return (
        resolve(Search, recipe.search, as_overrides(own)),
        rest,
        configure("finetune", recipe, rest).kind,
    )


def _asked(prompt: Prompt) -> dict[str, Any]:
    """What a search takes of a prompt: all but its seed."""
    return {key: value for key, value in asdict(prompt).items() if key != "seed" and value is not None}


def _trials(grid: Search, learning_rate: float) -> list[Trial]:
    trials = []
    for optimizer, factor, which in itertools.product(grid.optimizers, grid.factors, grid.subsets):
        more = grid.sgd_factor if optimizer in ("sgd", "momentum") else 1.0
        trials.append(Trial(optimizer, float(f"{learning_rate * factor * more:.6g}"), which))
    return trials


@dataclass(frozen=True, kw_only=True)
class _Trials:
    """What all trials share."""

    pipeline: Any
    data: Path
    steps: int
    recipe: str
    overrides: Sequence[str]
    seed: int
    device: str
    folder: Path
    judged: _Judged

    def run(self, trial: Trial) -> dict[str, Any]:
        """The trial's row, kept in its folder, so that a resumed search does not repeat it."""
        folder = self.folder / trial.name
        file = folder / "trial.json"
        if file.exists():
            return read_json(file)
        row: dict[str, Any] = {"trial": trial.name, **asdict(trial)}
        try:
            score = self.judged.score(adapt(load_pipeline(self._attacked(trial)), self.device), folder / "evaluation")
            row["concept"] = {key: value for key, value in score.to_dict().items() if key != "protocol"}
        except RunError as error:
            row["failed"] = str(error)
        write_json(file, row)
        return row

    def _attacked(self, trial: Trial) -> Path:
        out = self.pipeline_of(trial.name)
        attack(
            self.pipeline,
            self.data,
            steps=[self.steps],
            recipe=self.recipe,
            overrides=[*self.overrides, *trial.overrides],
            shared_overrides=True,
            seed=self.seed,
            device=self.device,
            out=out,
            resume=out.exists(),
        )
        return out

    def pipeline_of(self, name: str) -> Path:
        """Where the attacked pipeline of the trial ``name`` lies."""
        return self.folder / name / "attack"


@dataclass(frozen=True)
class _Judged:
    """How much of the concept a pipeline draws."""

    prompts: Sequence[Prompt]
    judge: Judge
    concept: str
    alternatives: Sequence[str]
    images: int
    seed: int

    def plan(self, model: TextToImageModel, *, fresh: bool = False) -> Evaluation:
        count = len(self.prompts) * self.images
        # A prompt's own seed would be the same twice.
        prompts = [Prompt(p.text, None, p.guidance_scale, p.label) for p in self.prompts]
        return plan(
            model.pipeline, prompts, metrics=["concept"], judge=self.judge, concept=self.concept,
            alternatives=self.alternatives, images_per_prompt=self.images,
            seed=self.seed + (count if fresh else 0),
        )  # fmt: skip

    def score(self, model: TextToImageModel, out: Path, *, fresh: bool = False) -> Score:
        return self.plan(model, fresh=fresh).run(model.pipeline, out=out)["concept"]
