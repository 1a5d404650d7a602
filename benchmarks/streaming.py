"""How much host memory does an evaluation of many large pictures need, beyond the model?

    python benchmarks/streaming.py --images 10000 --size 512
    python benchmarks/streaming.py --images 10000 --features 2048 --reference 10000

Pictures are painted rather than generated, one ramp in one tint a seed, since only what happens to them afterwards is
measured: they are written as PNG, judged by Canvas's judge (concept, CLIP score) and kept as features (FID, KID).
Counted is the peak of resident memory above what the process holds once the judge is loaded. With --features nothing is
painted: FID and KID of random features of that width, such as Inception's 2,048, are what is measured. Linux.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from metaunlearn import draws
from metaunlearn.data.imagefolder import write_imagefolder
from metaunlearn.data.prompts import Prompt
from metaunlearn.doctor.meter import Meter
from metaunlearn.evaluation import plan
from metaunlearn.metrics.fid import fid_of_features
from metaunlearn.metrics.judge import load_judge
from metaunlearn.metrics.kid import kid_of_features

MIB = 2**20
RANDOM = SimpleNamespace(name="random", fingerprint="")


def main() -> None:
    """Print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--features", type=int, help="measure the distances alone, of features of this width")
    parser.add_argument("--reference", type=int, default=10_000, help="reference images, with --features")
    options = parser.parse_args()
    if options.features:
        distances(options.images, options.reference, options.features)
    else:
        streamed(options.images, options.size)


def streamed(images: int, size: int) -> None:
    """A whole evaluation."""
    draws.generate_images = painted(size)
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=size // 8))
    pipeline = SimpleNamespace(config={}, unet=unet, vae_scale_factor=8)
    with tempfile.TemporaryDirectory() as folder:
        noise = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        write_imagefolder(Path(folder) / "real", noise, ["a knife"] * len(noise))
        evaluation = plan(
            pipeline,
            [Prompt("a knife")],
            metrics=["concept", "clip-score", "fid", "kid"],
            judge=load_judge("canvas"),
            concept="knife",
            alternatives=["key", "hammer"],
            reference=Path(folder) / "real",
            images_per_prompt=images,
        )
        out, state = Path(folder) / "out", Path(folder) / "state"
        began = time.perf_counter()
        peak = Meter("cpu").peak(lambda: evaluation.run(pipeline, out=out, kept=state, progress=told))
        seconds = time.perf_counter() - began
    held = images * 3 * size**2 * 4 / MIB
    print("\n| pictures | pixels a side | peak above the idle process | all of them as floats | seconds |")
    print("|---|---|---|---|---|")
    print(f"| {images} | {size} | {peak / MIB:.0f} MiB | {held:.0f} MiB | {seconds:.0f} |")


def distances(images: int, reference: int, width: int) -> None:
    """The last step alone; the features are drawn within what is counted, since an evaluation holds them, too."""
    print("| distance | pictures | reference | features | peak above the idle process | the features | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    held = (images + reference) * width * 4 / MIB
    for name, of_features in (("FID", fid_of_features), ("KID", kid_of_features)):
        began = time.process_time()
        peak = Meter("cpu").peak(lambda take=of_features: take(*random_features(images, reference, width), RANDOM))
        seconds = time.process_time() - began
        memory = f"{peak / MIB:.0f} MiB | {held:.0f} MiB"
        print(f"| {name} | {images} | {reference} | {width} | {memory} | {seconds:.0f} |", flush=True)


def random_features(images: int, reference: int, width: int) -> tuple[Tensor, Tensor]:
    """(N, D) and (R, D)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, width, generator=generator), torch.randn(reference, width, generator=generator)


def painted(size: int) -> Any:
    """Stands in for ``generate_images``."""
    ramp = torch.linspace(0, 0.5, size).expand(3, size, size)

    def paint(pipeline: object, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Tensor:
        tints = torch.stack([torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(seed)) / 2 for seed in seeds])
        return ramp + tints

    return paint


def told(done: int, total: int) -> None:
    """Progress."""
    print(f"\r{done}/{total}", end="", flush=True)


if __name__ == "__main__":
    main()
