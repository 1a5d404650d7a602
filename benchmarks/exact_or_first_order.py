"""Which meta-gradient resists better for the same compute: first order, or the exact one in fewer outer steps?

    python benchmarks/exact_or_first_order.py            # or: --seed 0 to run one seed, beside another process

The demo's story for the knife (``stories.py``; what is there already is read) gives the plainly unlearned model and the
one by first order, the default of the recipe ``small``. Beside it the same erasing with the exact meta-gradient, on the
same pictures, for as many outer steps as take the same time; the same attack; the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from stories import story

from metaunlearn.attacking import attack
from metaunlearn.canvas.measure import measure
from metaunlearn.canvas.tasks import task_for
from metaunlearn.erasing import erase
from metaunlearn.files import write_json
from metaunlearn.metrics.judge import load_judge
from metaunlearn.models import load_pipeline
from metaunlearn.recipe import read_recipe

CONCEPT = "knife"


def main() -> None:
    """Run what is missing, then print one row for each model and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", action="append", type=int, help="default: 0, 1, 2")
    parser.add_argument("--exact-steps", type=int, default=150, help="outer steps of the exact one, for equal seconds")
    parser.add_argument("--stories", type=Path, default=Path("runs/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/exact"))
    options = parser.parse_args()
    for seed in options.seed or (0, 1, 2):
        folder = options.stories / f"{CONCEPT}-{seed}"
        models = story(CONCEPT, seed, folder)["models"]
        for model in ("unlearn", "meta-unlearn"):
            print(row(model, seed, seconds_of(folder / model), models[model]["before"], models[model]["malicious"]))
        scores = exact(folder, options.runs / f"{CONCEPT}-{seed}", seed, options.exact_steps)
        seconds = seconds_of(options.runs / f"{CONCEPT}-{seed}" / "erased")
        print(row(f"exact, {options.exact_steps} steps", seed, seconds, scores["0"], scores), flush=True)


def exact(told: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """The scores by attack steps, 0 being before; kept in ``folder``."""
    file = folder / "scores.json"
    if not file.exists():
        settings = read_recipe("demo").story
        assert settings is not None
        data, erased = told / "unlearn" / "data", folder / "erased"
        erase(
            "canvas",
            [CONCEPT],
            forget_data=data / "forget",
            retain_data=data,
            overrides=["meta_gradient=auto", f"steps={steps}"],
            seed=seed,
            out=erased,
            resume=erased.exists(),
        )
        attacked = attack(
            erased,
            told / "data" / "malicious",
            steps=settings.malicious.steps,
            recipe="small",
            overrides=[f"learning_rate={settings.malicious.learning_rate}"],
            seed=seed,
            out=folder / "attacked",
            resume=(folder / "attacked").exists(),
        ).checkpoints
        judge, task = load_judge("canvas"), task_for(CONCEPT)
        states = [(0, erased, settings.full), *((step, path, settings.between) for step, path in attacked.items())]
        found = {
            str(step): measure(load_pipeline(path), task, judge, counts, seed=seed).summary()
            for step, path, counts in states
        }
        write_json(file, found)
    scores: dict[str, Any] = json.loads(file.read_text())
    return scores


def seconds_of(run: Path) -> float:
    """How long an erasing run took."""
    seconds: float = json.loads((run / "run.json").read_text())["seconds"]
    return seconds


def row(name: str, seed: int, seconds: float, before: dict[str, Any], attacked: dict[str, Any]) -> str:
    """One line: what the erasing cost and kept, and how much of the concept each attack brought back."""
    back = "  ".join(
        f"{step}: {scores['concept'][0]:.0f} [{scores['concept'][1]:.0f}, {scores['concept'][2]:.0f}]"
        for step, scores in attacked.items()
        if step != "0"
    )
    return (
        f"seed {seed}  {name:17} {seconds:4.0f} s  before: concept {before['concept'][0]:.0f}, related "
        f"{before['related'][0]:.0f}, unrelated {before['unrelated'][0]:.1f}, CLIP score {before['clip_score']:.1f}  "
        f"after finetuning  {back}"
    )


if __name__ == "__main__":
    main()
