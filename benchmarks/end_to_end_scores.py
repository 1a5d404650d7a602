"""What a run of the official code's loop reaches on Canvas, beside runs of ours: before an attack, and after it.

    python benchmarks/end_to_end_scores.py --out runs/official

The loop of ``official_loop.py`` takes ``--steps`` steps at each of ``--rates``, ours those of each of ``--recipes``
with what ``--set`` changes in all of them, and all is kept in ``--out``; stopped, the other loop goes on from its last
hundred. Then every model is attacked alike,
with AdamW on real pictures of the concept, and measured on the same prompts and seeds. The minutes are of a processor,
which a busy machine stretches little: of ours the whole run with its pictures, bank and checkpoints, of the other loop
its steps alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import official_loop
import torch
from official_loop import OfficialLoop, pictures

from metaunlearn.attacking import attack
from metaunlearn.bench.formats import slug
from metaunlearn.canvas.datasets import write_dataset
from metaunlearn.canvas.measure import Measurement, measure
from metaunlearn.canvas.tasks import task_for
from metaunlearn.checkpoint import restore_training, save_training, step_generator
from metaunlearn.config import Counts
from metaunlearn.erasing import erase
from metaunlearn.files import write_atomic
from metaunlearn.metrics.judge import load_judge
from metaunlearn.models import load_pipeline

CONCEPT = "knife"
SECONDS = "processor_seconds.json"
STEPS = (10, 20, 30, 60)
"""The attack's checkpoints."""
EVERY = 100
"""Steps between two states of the other loop that are kept."""
BEFORE, AFTER = Counts(concept=100, related=70, unrelated=200), Counts(concept=100, related=0, unrelated=0)


def main() -> None:
    """Train, attack, measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=[official_loop.LEARNING_RATE])
    parser.add_argument("--recipes", nargs="+", default=["small", "small-quick"])
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="KEY=VALUE, of every run of ours")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, default=Path("benchmarks/end_to_end_scores.md"))
    options = parser.parse_args()
    models = {
        f"the official code's loop, {options.steps} steps at {rate:g}": train(
            options.out / f"{rate:g}", options.steps, rate, options.seed
        )
        for rate in options.rates
    }
    for recipe in options.recipes:
        name = ", ".join(["ours", recipe, *options.overrides])
        models[name] = erased(options.out / slug(name), recipe, options.overrides, options.seed)
    data = options.out / "data"
    if not data.exists():
        write_dataset(data, "hrm-m", CONCEPT, 30, step_generator(options.seed, 0, "pictures"))
    original = measured(Path("canvas"), BEFORE, options.seed)
    lines = [line("original", None, original, {})]
    for name, (folder, seconds) in models.items():
        before = measured(folder, BEFORE, options.seed)
        after = attacked(folder, data, options.out / "attacked" / slug(name), options.seed)
        lines.append(line(name, seconds, before, after))
        print(lines[-1], flush=True)
    scores = ["unrelated", "related", "FID", "CLIP score", f"{CONCEPT} before"]
    heads = ["model", "minutes", *scores, *(f"{step} steps" for step in STEPS)]
    table = [
        "# What the official code's loop reaches, beside ours",
        f"`python benchmarks/end_to_end_scores.py`: Canvas, {CONCEPT}, ESD-u-1 with the meta objective, seed "
        f"{options.seed}; how often the judge sees a knife before and after steps of AdamW at 5e-5 on real pictures of "
        f"it, in percent of {BEFORE.concept} pictures; torch {torch.__version__}, {torch.get_num_threads()} thread(s).",
        "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]),
    ]
    write_atomic(options.table, "\n\n".join(table) + "\n")


def train(out: Path, steps: int, rate: float, seed: int) -> tuple[Path, float]:
    """A pipeline that the other loop made, and in how many seconds; what is there already is not made again."""
    done, state, part = out / "model", out / "state.safetensors", out / "part"
    if done.exists():
        return done, seconds_of(done)
    loop = OfficialLoop(CONCEPT, pictures(CONCEPT, seed + 1), seed)
    for group in loop.optimizer.param_groups:
        group["lr"] = rate
    trained = {name: loop.student.get_parameter(name) for name in loop.trained}
    first, seconds = 0, 0.0
    if state.exists():
        first, more = restore_training(state, trained, loop.optimizer)
        loop.generator.set_state(more["generator"])
        seconds = more["seconds"].item()
    for step in range(first + 1, steps + 1):
        began = time.process_time()
        loop.step()
        seconds += time.process_time() - began
        if step % EVERY == 0:
            more = {"generator": loop.generator.get_state(), "seconds": torch.tensor(seconds)}
            save_training(state, trained, loop.optimizer, step, more)
            print(f"{rate:g}: {step} of {steps} steps, {seconds / 60:.1f} minutes", flush=True)
    loop.pipeline.unet.load_state_dict(loop.student.state_dict())
    loop.pipeline.save_pretrained(part, safe_serialization=True)
    note_seconds(part, seconds)
    return part.rename(done), seconds


def erased(out: Path, recipe: str, overrides: Sequence[str], seed: int) -> tuple[Path, float]:
    """The same of a run of ours. One that was stopped begins anew: nobody knows how long it had taken."""
    done, part = out / "model", out / "part"
    if done.exists():
        return done, seconds_of(done)
    shutil.rmtree(part, ignore_errors=True)
    began = time.process_time()
    erase("canvas", [CONCEPT], method="esd-u-1", recipe=recipe, overrides=overrides, seed=seed, out=part)
    seconds = time.process_time() - began
    note_seconds(part, seconds)
    return part.rename(done), seconds


def note_seconds(model: Path, seconds: float) -> None:
    """Keep beside a model how long its making kept a processor busy."""
    (model / SECONDS).write_text(json.dumps(seconds), encoding="utf-8")


def seconds_of(model: Path) -> float:
    """As :func:`note_seconds` kept it."""
    return float(json.loads((model / SECONDS).read_text(encoding="utf-8")))


def attacked(model: Path, data: Path, out: Path, seed: int) -> dict[int, float]:
    """By step, how often the concept is seen."""
    found = attack(
        str(model),
        data,
        recipe="small",
        steps=STEPS,
        overrides=["learning_rate=5e-5"],
        seed=seed,
        out=out,
        resume=out.exists(),
    )
    return {int(step): measured(folder, AFTER, seed).concept.value for step, folder in found.checkpoints.items()}


def measured(model: Path, counts: Counts, seed: int) -> Measurement:
    """On the prompts of the task."""
    return measure(load_pipeline(str(model)), task_for(CONCEPT), load_judge("canvas"), counts, seed=seed)


def line(name: str, seconds: float | None, before: Measurement, after: Mapping[int, float]) -> str:
    """Of the table."""
    scores: Sequence[float] = [
        before.scores()[key].value for key in ("unrelated", "related", "fid", "clip_score", "concept")
    ]
    later = [f"{value:.0f}" for value in after.values()] or [""] * len(STEPS)
    minutes = "" if seconds is None else f"{seconds / 60:.1f}"
    return f"| {' | '.join([name, minutes, *(f'{score:.1f}' for score in scores), *later])} |"


if __name__ == "__main__":
    main()
