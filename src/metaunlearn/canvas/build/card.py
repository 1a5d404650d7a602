"""``python -m metaunlearn.canvas.build.card``: measure Canvas; write ``docs/canvas.md`` and its sheet."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metaunlearn import canvas
from metaunlearn.canvas import scenes
from metaunlearn.canvas.build.render import PACKAGES
from metaunlearn.canvas.catalog import NAMES, STYLES, UNSEEN_PAIRS, caption
from metaunlearn.data.imagefolder import to_uint8
from metaunlearn.data.latents import LatentSet
from metaunlearn.diffusion import denoising_loss
from metaunlearn.generation import default_sampling, generate_images
from metaunlearn.metrics.concept import label_accuracy
from metaunlearn.metrics.intervals import Score
from metaunlearn.metrics.judge import Judge, load_judge
from metaunlearn.models import load
from metaunlearn.parameters import leaves

COMMAND = "python -m metaunlearn.canvas.build.card"
REAL_PICTURES = 2048
SEEDS_TRAINED, SEEDS_UNSEEN = 2, 20


def main() -> None:
    """Measure everything and write the card."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judge = load_judge("canvas")
    rows = [*_real(judge), *_generated(judge)]
    times = _times()
    sample_sheet().save(options.out / "canvas-sheet.png", optimize=True)
    (options.out / "canvas.md").write_text(_card(rows, times), encoding="utf-8")
    for label, score, floor in rows:
        print(f"{label}: {score.value:.1f} % [{score.low:.1f}, {score.high:.1f}], at least {floor} wanted")


def _real(judge: Judge) -> list[tuple[str, Score, int]]:
    batch = scenes.draw(scenes.all_pairs(), REAL_PICTURES, torch.Generator().manual_seed(987_654_321))
    images = (batch.images + 1) / 2
    objects = [NAMES[i] for i in batch.objects.tolist()]
    styles = [STYLES[i] for i in batch.styles.tolist()]
    return [
        ("judge on real pictures, object", label_accuracy(judge, images, objects, NAMES), 98),
        ("judge on real pictures, style", label_accuracy(judge, images, styles, STYLES), 98),
    ]


def _generated(judge: Judge) -> list[tuple[str, Score, int]]:
    pipeline = canvas.load_pipeline()
    rows = []
    for kind, seeds, floors in (("trained", SEEDS_TRAINED, (90, 95)), ("unseen", SEEDS_UNSEEN, (60, 80))):
        pairs = sorted(UNSEEN_PAIRS) if kind == "unseen" else _trained()
        items = [(name, style, seed) for seed in range(seeds) for name, style in pairs]
        prompts = [caption(name, style) for name, style, _ in items]
        images = generate_images(pipeline, prompts, [7_000_000 + i for i in range(len(items))])
        objects = label_accuracy(judge, images, [item[0] for item in items], NAMES)
        styles = label_accuracy(judge, images, [item[1] for item in items], STYLES)
        rows += [
            (f"generated, {kind} pairs, object", objects, floors[0]),
            (f"generated, {kind} pairs, style", styles, floors[1]),
        ]
    return rows


def _trained() -> list[tuple[str, str]]:
    return [(name, style) for name in NAMES for style in STYLES if (name, style) not in UNSEEN_PAIRS]


def _times() -> dict[str, float]:
    """Median seconds of one picture and of one gradient of L_DM at batch 8 over all parameters."""
    model = load("canvas")
    batch = scenes.draw(scenes.trained_pairs(), 8, torch.Generator().manual_seed(0))
    data = LatentSet.encode(model, batch.images, [caption(NAMES[i]) for i in batch.objects.tolist()])
    drawn, theta = data.draw(8, torch.Generator().manual_seed(0)), model.parameters()

    def gradient() -> None:
        at = leaves(theta)
        torch.autograd.grad(denoising_loss(model, at, drawn), list(at.values()))

    return {
        "one picture": _median(lambda: generate_images(model.pipeline, ["a rocket"], [0])),
        "one gradient": _median(gradient),
    }


def _median(action: Callable[[], object], repeats: int = 9) -> float:
    action()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def sample_sheet(columns: int = 32) -> Image.Image:
    """Every object in every style, one generated picture each: two bands of ``columns`` objects."""
    pipeline = canvas.load_pipeline()
    items = [(name, style) for name in NAMES for style in STYLES]
    images = generate_images(pipeline, [caption(n, s) for n, s in items], [31 + i for i in range(len(items))])
    grid: Tensor = images.view(len(NAMES) // columns, columns, len(STYLES), 3, 64, 64)
    sheet = grid.permute(3, 0, 2, 4, 1, 5).reshape(3, -1, columns * 64)
    return Image.fromarray(to_uint8(sheet).permute(1, 2, 0).numpy())


def _card(rows: list[tuple[str, Score, int]], times: dict[str, float]) -> str:
    sampling = default_sampling(canvas.load_pipeline())
    model = load("canvas")
    counts = {
        "denoiser": sum(p.numel() for p in model.unet.parameters()),
        "autoencoder": sum(p.numel() for p in model.pipeline.vae.parameters()),
        "text encoder": sum(p.numel() for p in model.pipeline.text_encoder.parameters()),
        "judge": sum(p.numel() for p in canvas.load_judge()[0].parameters()),
    }
    size = sum(file.stat().st_size for file in canvas.weights_folder().rglob("*") if file.is_file())
    sums = json.loads((canvas.weights_folder() / "checksums.json").read_text(encoding="utf-8"))
    lines = [
        "# Canvas, the embedded model", "",
        f"Written by `{COMMAND}`; every figure below is of the shipped weights.", "",
        "![objects × styles](canvas-sheet.png)", "",
        f"{len(NAMES)} objects × {len(STYLES)} styles at 64 × 64 px; {len(UNSEEN_PAIRS)} pairs were never shown to the "
        "autoencoder or the denoiser. The judge, which must know what it judges, has seen all pairs; its text tower is "
        "the pipeline's text encoder. Some 500 other emoji of these families taught both what a style is, without a "
        "word on what they show.", "",
        f"Shipped sampler: {sampling.steps} DPM-Solver++ steps, guidance {sampling.guidance_scale:g}. "
        "Percentages with 95 % Wilson intervals.", "",
        "| what | right | 95 % interval | pictures | wanted |", "|---|---|---|---|---|",
        *(
            f"| {label} | {score.value:.1f} % | {score.low:.1f} – {score.high:.1f} | {score.n} | ≥ {floor} % |"
            for label, score, floor in rows
        ),
        "", "| time, 2 CPU cores | seconds (median of 9) |", "|---|---|",
        f"| one 64 × 64 picture | {times['one picture']:.2f} |",
        f"| one gradient of the denoising loss, batch 8, all parameters | {times['one gradient']:.3f} |",
        "", "| part | parameters |", "|---|---|",
        *(f"| {name} | {count / 1e6:.2f} M |" for name, count in counts.items()),
        "", f"Weights: {size / 1e6:.1f} MB in half precision, cast to float32 on load.", "",
        "| file | SHA-256 |", "|---|---|", *(f"| `{name}` | `{digest}` |" for name, digest in sums.items()),
        "", "## Sources", "",
        "Sprites come from these npm packages; `canvas/art/sources.json` lists file and checksum of each, `NOTICE` the "
        "licences. `make canvas` fetches them and trains everything again.", "",
        *(f"- {style}: `{spec}`" for style, spec in PACKAGES.items()),
        "", "Never shown: " + ", ".join(f"{name} in {style}" for name, style in sorted(UNSEEN_PAIRS)) + ".", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
