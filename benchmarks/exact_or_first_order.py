"""Which meta-gradient resists better for the same compute: first order, or the exact one in fewer outer steps?

    python benchmarks/exact_or_first_order.py            # or: --seed 0 to run one seed, beside another process

Erases with each, gives both as many seconds, and finetunes each result as the demo's malicious attack does. Runs that
are finished already are read, not repeated. The default of the recipe ``small`` is what wins here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from metaunlearn.attacking import attack
from metaunlearn.canvas.datasets import hrm_m
from metaunlearn.canvas.measure import measure
from metaunlearn.canvas.tasks import task_for
from metaunlearn.checkpoint import step_generator, write_json
from metaunlearn.config import Counts, read_recipe
from metaunlearn.data.imagefolder import METADATA, write_imagefolder
from metaunlearn.erasing import erase
from metaunlearn.metrics.judge import load_judge
from metaunlearn.models import load_pipeline

BEFORE = Counts(concept=50, related=70, unrelated=200)
AFTER = Counts(concept=100, related=35, unrelated=0)


def main() -> None:
    """Run what is missing, then print one row for each model and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", default="knife")
    parser.add_argument("--seed", action="append", type=int, help="default: 0, 1, 2")
    parser.add_argument("--steps", type=int, default=300, help="outer steps of the first order")
    parser.add_argument("--exact-steps", type=int, default=150, help="outer steps of the exact one, for equal seconds")
    parser.add_argument("--runs", type=Path, default=Path("runs/exact-or-first-order"))
    options = parser.parse_args()
    variants: dict[str, tuple[bool, list[str]]] = {
        "plain": (False, [f"steps={options.steps}"]),
        "first order": (True, ["meta_gradient=first-order", f"steps={options.steps}"]),
        "exact": (True, ["meta_gradient=auto", f"steps={options.exact_steps}"]),
    }
    for seed in options.seed or (0, 1, 2):
        for name, (meta, overrides) in variants.items():
            folder = options.runs / f"{options.concept}-{seed}" / name.replace(" ", "-")
            print(row(name, seed, result(folder, options.concept, seed, meta=meta, overrides=overrides)), flush=True)


def result(folder: Path, concept: str, seed: int, *, meta: bool, overrides: list[str]) -> dict[str, Any]:
    """The scores of one variant: erased, attacked, measured."""
    file = folder / "scores.json"
    if not file.exists():
        story = read_recipe("demo").story
        assert story is not None
        pictures = folder.parent / "pictures"
        if not (pictures / METADATA).exists():
            images, texts = hrm_m(concept, story.malicious.pictures, step_generator(seed, 0, "pictures malicious"))
            write_imagefolder(pictures, images, texts)
        erased = folder / "erased"
        summary = erase(
            "canvas", [concept], meta=meta, overrides=overrides, seed=seed, out=erased, resume=erased.exists()
        ).summary
        attacked = attack(
            erased,
            pictures,
            steps=story.malicious.steps,
            recipe="small",
            overrides=[f"learning_rate={story.malicious.learning_rate}"],
            seed=seed,
            out=folder / "attacked",
            resume=(folder / "attacked").exists(),
        ).checkpoints
        states = {0: (erased, BEFORE), **{step: (path, AFTER) for step, path in attacked.items()}}
        judge, task = load_judge("canvas"), task_for(concept)
        scores = {
            step: measure(load_pipeline(path), task, judge, counts, seed=seed).summary()
            for step, (path, counts) in states.items()
        }
        write_json(file, {"summary": summary, "scores": scores})
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def row(name: str, seed: int, found: dict[str, Any]) -> str:
    """One line: what the erasing cost and kept, and how much of the concept each attack brought back."""
    scores = found["scores"]
    before = scores["0"]
    back = "  ".join(
        f"{step}: {s['concept'][0]:.0f} [{s['concept'][1]:.0f}, {s['concept'][2]:.0f}]"
        for step, s in scores.items()
        if step != "0"
    )
    summary = found["summary"]
    return (
        f"seed {seed}  {name:11} ({summary.get('meta_gradient', 'none')}, {summary['seconds']:.0f} s)  "
        f"before: concept {before['concept'][0]:.0f}, related {before['related'][0]:.0f}, "
        f"unrelated {before['unrelated'][0]:.0f}, CLIP score {before['clip_score']:.1f}  after finetuning  {back}"
    )


if __name__ == "__main__":
    main()
