"""Erasing with the meta objective on Canvas: our loop beside a step-for-step equivalent of the official code's.

    python benchmarks/end_to_end.py --out benchmarks/end_to_end.md

The other loop is that of ``official_loop.py``. Ours draws latents from a bank, encodes once, has no copy and takes
batches of 8 (recipe ``small-unbounded``). The steps of both are timed in turn, so that a busy machine slows them alike.
Making the forget and retain pictures is part of neither; the bank, which the other loop has not, is part of ours,
spread over the steps of a run. What both reach: ``end_to_end_scores.py``.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from official_loop import OfficialLoop, Pictures, pictures

from metaunlearn.data.concepts import prompts_for
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.erasure.interface import ErasureTask
from metaunlearn.erasure.registry import configure
from metaunlearn.meta.train import Algorithm1
from metaunlearn.models import load
from metaunlearn.recipe import read_recipe

CONCEPT = "knife"


def our_loop(concept: str, sets: dict[str, Pictures], mode: str, steps: int) -> tuple[Algorithm1, float]:
    """Algorithm 1 with the recipe ``small-unbounded``, whose losses are the official code's.

    And what a step's share of the bank costs, in seconds.
    """
    model = load("canvas", "cpu")
    method = configure("esd-u-1", read_recipe("small-unbounded"), [f"meta_gradient={mode}"])
    prompts = prompts_for(model.pipeline, [concept])
    task = ErasureTask(model=model, prompts=prompts, settings=method.settings, seed=0)
    began = time.perf_counter()
    forget = method.method.begin(task)
    share = (time.perf_counter() - began) / steps
    data = {
        role: LatentSet.encode(model, *sets[kind])
        for role, kind in (("forget", "hrm"), ("related", "tgt"), ("unrelated", "irt"))
    }
    run = Algorithm1(
        model, ErasureData(**data), forget, method.settings,
        trained=method.method.trained(model), meta=True, seed=0,
    )  # fmt: skip
    return run, share


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/end_to_end.md"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1000, help="outer steps that share the bank's cost")
    options = parser.parse_args()
    sets = pictures(CONCEPT)
    official = OfficialLoop(CONCEPT, sets)
    ours = {mode: our_loop(CONCEPT, sets, mode, options.steps) for mode in ("first-order", "gradient-difference")}
    loops: dict[str, Callable[[], object]] = {"official code's loop": official.step}
    loops |= {f"ours, {mode}": run.take_step for mode, (run, _) in ours.items()}
    for loop in loops.values():
        loop()
    taken = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, loop in loops.items():
            taken[name].append(seconds(loop))
    means = {name: statistics.fmean(times) for name, times in taken.items()}
    for mode, (_, share) in ours.items():
        means[f"ours, {mode}"] += share
    base = means["official code's loop"]
    lines = [
        "# Erasing end to end: a step of ours beside one of the official code's loop",
        "",
        f"`python benchmarks/end_to_end.py`: Canvas, {CONCEPT}, ESD-u-1 with the meta objective, mean of "
        f"{options.rounds} steps of each in turn; torch {torch.__version__}, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()}.",
        "",
        "| loop | seconds a step | times faster |",
        "|---|---|---|",
        *(f"| {name} | {mean:.2f} | {base / mean:.1f} |" for name, mean in means.items()),
        "",
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
