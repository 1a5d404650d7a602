"""The demo: on Canvas, erase a concept plainly and with the meta objective, attack both, measure everything, report."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaunlearn.attacking import attack
from metaunlearn.canvas.catalog import NAMES, STYLES
from metaunlearn.canvas.datasets import write_dataset
from metaunlearn.canvas.measure import Shown, measure, save_shown
from metaunlearn.canvas.tasks import known, task_for
from metaunlearn.cards import write_card
from metaunlearn.checkpoint import step_generator
from metaunlearn.config import Counts, Regime, StorySettings
from metaunlearn.data.wording import bare
from metaunlearn.erasing import erase
from metaunlearn.erasure.registry import check_objective, configure, has_defence
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.files import needed_path, read_json, write_json
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.judge import Judge, load_judge
from metaunlearn.models import load_pipeline
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.recipe import read_recipe
from metaunlearn.report.data import SUMMARY_FILE
from metaunlearn.report.page import build_report
from metaunlearn.report.runs import REPORT_FILE
from metaunlearn.runs import Progress, RunFolder, versions
from metaunlearn.settings import whole_number

logger = logging.getLogger(__name__)

ERASED = {"unlearn": False, "meta-unlearn": True}
"""The two erased models, and whether the meta objective is on."""

PICTURES_SHOWN = 6
"""Pictures of each role that the report shows for a state."""


@dataclass(frozen=True)
class State:
    """One state of one model that is measured."""

    model: str
    """``original``, ``unlearn`` or ``meta-unlearn``."""
    regime: str
    """``before``, ``malicious``, ``strong`` or ``benign``."""
    step: int
    folder: str | Path
    """What ``load_pipeline`` takes."""
    counts: Counts
    show: bool
    """Whether the report shows its pictures."""

    @property
    def name(self) -> str:
        """``before`` or, say, ``malicious-40``."""
        return self.regime if self.regime == "before" else f"{self.regime}-{self.step}"


def demo(
    out: Path | str = Path("runs/demo"),
    *,
    concept: str | None = None,
    method: str | None = None,
    seed: int = 0,
    recipe: Path | str = "demo",
    overrides: Overrides = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the whole story and return what ``summary.json`` holds.

    ``concept`` is an object or a style of Canvas; it and ``method`` are the recipe's unless they are given.
    """
    out, story, overrides = needed_path(out, "out=, --out DIR"), read_recipe(recipe).story, as_overrides(overrides)
    seed = whole_number(seed, "seed=, --seed")
    if story is None:
        raise UserError(f"recipe {recipe} has no [story] section; 'demo' has one (recipe=, --recipe).")
    concept = story.concept if concept is None else bare(concept)
    method = story.method if method is None else method
    if not known(concept):
        choices = [*NAMES, *STYLES]
        raise UserError(
            f"Canvas has no concept {concept!r} (concept=, --concept).{did_you_mean(concept, choices)} "
            f"Known: {', '.join(choices)}."
        )
    if has_defence(method):
        raise UserError(
            f"the demo sets a method's plain form beside its meta form, and {method!r} has a defence of its own "
            "(method=, --method): choose another one, such as esd-u-1, or set methods side by side with bench."
        )
    wanted = [*as_overrides(story.erase), *overrides]
    chosen = configure(method, read_recipe(story.recipe), wanted)
    check_objective(chosen, meta=True)
    request = {
        "command": "demo", "concept": concept, "method": method, "seed": seed, "story": story.model_dump(mode="json"),
        "overrides": overrides, "erasing": chosen.record(),
    }  # fmt: skip
    folder = RunFolder.open(out, request, resume=resume, alone=True)
    if folder.complete_before:
        return _told_before(out)

    progress = folder.watched(progress)
    began = time.monotonic()
    with folder.alone():
        regimes: dict[str, Regime] = {"malicious": story.malicious, "strong": story.strong, "benign": story.benign}
        data = {regime: _real_pictures(out, concept, regime, settings, seed) for regime, settings in regimes.items()}
        settings = _erase_both(out, concept, method, story.recipe, wanted, seed, progress)
        states = [State("original", "before", 0, "canvas", story.full, True)]
        for model in ERASED:
            states.append(State(model, "before", 0, out / model, story.full, True))
            for regime, plan in regimes.items():
                checkpoints = attack(
                    out / model,
                    data[regime],
                    steps=plan.steps,
                    recipe=story.recipe,
                    overrides=[f"learning_rate={plan.learning_rate}"],
                    seed=seed,
                    out=out / "attacks" / f"{model}-{regime}",
                    resume=(out / "attacks" / f"{model}-{regime}").exists(),
                    progress=progress,
                ).checkpoints
                states += _attack_states(story, model, regime, plan, checkpoints)

        measured = _measure_all(out, concept, states, seed, progress)
        summary = _summary(concept, seed, story, settings, states, measured)
        summary["commands"] = [_command(concept, method, str(recipe), seed, overrides)]
        summary["seconds"] = round(folder.seconds(), 1)
        write_json(out / SUMMARY_FILE, summary)
        build_report(out)
        for model in ERASED:  # Erasing wrote them before anything was measured.
            write_card(out / model)
        folder.finish(seconds_of_this_part=round(time.monotonic() - began, 1))
    told: dict[str, Any] = read_json(out / SUMMARY_FILE)  # Its lists, as a later call has them.
    return told


def _told_before(out: Path) -> dict[str, Any]:
    """The summary of a story that is whole; says so when other versions told it."""
    found: dict[str, Any] = read_json(out / SUMMARY_FILE)
    then, now = found.get("versions", {}), versions()
    others = [f"{name} {then[name]} (now {now[name]})" for name in now if name in then and then[name] != now[name]]
    if others:
        logger.warning("%s was told by %s; for today's figures give another folder", out, ", ".join(others))
    if not (out / REPORT_FILE).exists():
        build_report(out)
    return found


def _real_pictures(out: Path, concept: str, regime: str, plan: Regime, seed: int) -> Path:
    """The attacker's pictures: real ones of the concept, or of unrelated things for benign finetuning."""
    target = out / "data" / ("benign" if regime == "benign" else "malicious")
    name = "clean" if regime == "benign" else "hrm-m"
    write_dataset(target, name, concept, plan.pictures, step_generator(seed, 0, f"pictures {target.name}"))
    return target


def _erase_both(
    out: Path, concept: str, method: str, recipe: str, overrides: Sequence[str], seed: int, progress: Progress | None
) -> dict[str, Any]:
    """Both erased models, from the same pictures; the plain run makes them, unless its method needs none."""
    settings: dict[str, Any] = {}
    for model, meta in ERASED.items():
        shared = out / "unlearn" / "data"
        share = meta and shared.exists()
        result = erase(
            "canvas",
            [concept],
            method=method,
            meta=meta,
            forget_data=shared / "forget" if share else None,
            retain_data=shared if share else None,
            recipe=recipe,
            overrides=overrides,
            shared_overrides=True,
            seed=seed,
            out=out / model,
            resume=(out / model).exists(),
            progress=progress,
        )
        settings[model] = {**result.settings.model_dump(), "meta": meta, "method": method}
        if "meta_gradient" in result.summary:
            settings[model]["meta_gradient"] = result.summary["meta_gradient"]
    return settings


def _attack_states(
    story: StorySettings, model: str, regime: str, plan: Regime, checkpoints: Mapping[float, Path]
) -> list[State]:
    states = []
    for step in plan.steps:
        last = step == plan.steps[-1]
        counts = story.between if regime == "malicious" else story.sparse
        if last and regime != "strong":
            counts = story.full
        states.append(State(model, regime, step, checkpoints[step], counts, last))
    return states


def _measure_all(
    out: Path, concept: str, states: list[State], seed: int, progress: Progress | None
) -> dict[tuple[str, str], dict[str, Any]]:
    """The scores of every state; each is kept in a file of its own, so that a killed demo does not start over."""
    task = task_for(concept)
    judge: Judge = load_judge("canvas")
    measured = {}
    samples: list[dict[str, Any]] = []
    for done, state in enumerate(states):
        file = out / "scores" / state.model / f"{state.name}.json"
        if not file.exists():
            found = measure(load_pipeline(state.folder), task, judge, state.counts, seed=seed)
            shown = _save_shown(out / "samples", state, found.shown) if state.show else []
            write_json(file, {"scores": found.summary(), "protocols": found.protocols(), "samples": shown})
        record = read_json(file)
        measured[state.model, state.name] = record
        samples += record["samples"]
        if progress is not None:
            progress("measuring", done + 1, len(states))
    write_json(out / "samples" / "samples.json", samples)
    return measured


def _save_shown(folder: Path, state: State, parts: Sequence[Shown]) -> list[dict[str, Any]]:
    place = f"{state.model}/{state.name}"
    records = save_shown(folder / place, parts, PICTURES_SHOWN)
    return [{"model": state.model, "state": state.name, **r, "file": f"{place}/{r['file']}"} for r in records]


def _summary(
    concept: str,
    seed: int,
    story: StorySettings,
    settings: dict[str, Any],
    states: list[State],
    measured: dict[tuple[str, str], dict[str, Any]],
) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for state in states:
        scores = measured[state.model, state.name]["scores"]
        if state.regime == "before":
            models[state.model] = {"before": scores}
        else:
            models[state.model].setdefault(state.regime, {})[str(state.step)] = scores
    task = task_for(concept)
    sampling = default_sampling(load_pipeline("canvas"))
    return {
        "concept": concept,
        "seconds": 0.0,
        "models": models,
        "related": list(dict.fromkeys(item.label for item in task.related)),
        "unrelated": list(dict.fromkeys(item.label for item in task.unrelated)),
        "seed": seed,
        "settings": {"erase": settings, "attacks": story.model_dump(mode="json")},
        "protocol": {
            **measured["original", "before"]["protocols"],
            "sampling": {"steps": sampling.steps, "guidance_scale": sampling.guidance_scale, "image_size": 64},
        },
        "versions": versions(),
    }


def _command(concept: str, method: str, recipe: str, seed: int, overrides: Sequence[str]) -> str:
    """The call that does this again."""
    words = ["metaunlearn", "demo", "--concept", concept, "--method", method, "--recipe", recipe, "--seed", str(seed)]
    return shlex.join([*words, *(word for text in overrides for word in ("--set", text))])
