"""How much slower is an evaluation than generating the same pictures with diffusers alone, at the same batch?

    python benchmarks/evaluation.py --images 128             # Canvas on the CPU
    python benchmarks/evaluation.py --model DIR --judge openai/clip-vit-base-patch32 --device cuda --images 512

Both draw the same prompts and seeds, in turn, several rounds; the ratio is taken within a round. Measured are also the
peak of host memory and what the pictures would take if they were all held.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.evaluation import plan
from metaunlearn.generation import BATCH, default_sampling
from metaunlearn.metrics.judge import load_judge
from metaunlearn.models import load


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="canvas")
    parser.add_argument("--judge", default="canvas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    pipeline = load(options.model, options.device).pipeline
    judge = load_judge(options.judge, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(pipeline, judge, options.images, Path(folder) / str(round_)) for round_ in range(options.rounds)
        ]
    plain, whole = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(after / before for before, after in rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.model}, {options.images} pictures, batch {BATCH}, {options.device}, {platform.processor()}")
    print("| diffusers alone | evaluate (concept, clip-score, fid, kid) | ratio | peak host memory |")
    print("|---|---|---|---|")
    print(f"| {plain:.1f} s | {whole:.1f} s | {ratio:.3f} | {peak:.0f} MiB |")


def measure(pipeline: object, judge: object, count: int, folder: Path) -> tuple[float, float]:
    """Seconds of diffusers alone and of an evaluation, both of ``count`` pictures."""
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor  # type: ignore[attr-defined]
    real = torch.rand(64, 3, size, size, generator=torch.Generator().manual_seed(0))
    write_imagefolder(folder / "real", real, ["a knife"] * 64)
    evaluation = plan(
        pipeline,
        [Prompt("a knife in noto style")],
        metrics=["concept", "clip-score", "fid", "kid"],
        judge=judge,  # type: ignore[arg-type]
        concept="knife",
        alternatives=["key", "hammer"],
        reference=folder / "real",
        images_per_prompt=count,
    )
    began = time.perf_counter()
    draw_plainly(pipeline, count)
    between = time.perf_counter()
    evaluation.run(pipeline, out=folder / "out", kept=folder / "state")
    return between - began, time.perf_counter() - between


@torch.no_grad()
def draw_plainly(pipeline: object, count: int) -> None:
    """The pipeline as diffusers has it, batch by batch; the pictures are dropped."""
    sampling = default_sampling(pipeline)
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    for first in range(0, count, BATCH):
        seeds = range(first, min(first + BATCH, count))
        pipeline(  # type: ignore[operator]
            ["a knife in noto style"] * len(seeds),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        )


if __name__ == "__main__":
    main()
