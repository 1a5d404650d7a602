"""Invented results for the report's tests: a plausible summary, coloured sample pictures, run folders."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


def interval(value: float, spread_: float = 8.0) -> list[float]:
    """``[value, low, high]`` in percent; narrower towards 0 and 100, as an interval of a proportion is."""
    half = spread_ * (0.25 + 3 * (value / 100) * (1 - value / 100))
    return [round(value, 1), round(max(0.0, value - half), 1), round(min(100.0, value + half), 1)]


def scores(concept: float, related: float, unrelated: float, *, whole: bool = False) -> dict[str, Any]:
    """S of the design; only ``whole`` states carry CLIP score and FID."""
    clip_score = round(0.312 - concept / 1e4, 4)
    quality = {
        "clip_score": [clip_score, round(clip_score - 0.007, 4), round(clip_score + 0.007, 4)],
        "fid": round(18.4 + (100 - unrelated) / 4, 2),
    }
    return {
        "concept": interval(concept),
        "related": interval(related, 6),
        "unrelated": interval(unrelated, 5),
        **(quality if whole else {"clip_score": None, "fid": None}),
    }


def curve(at: Iterable[int], concept: float, related: float, unrelated: float) -> dict[str, Any]:
    """Checkpoints that rise to ``concept`` and fall to ``related`` and ``unrelated`` (percent)."""
    steps = list(at)
    found = {}
    for step in steps:
        share = (step / steps[-1]) ** 0.8
        state = (2 + (concept - 2) * share, 92 + (related - 92) * share, 95 + (unrelated - 95) * share)
        found[str(step)] = scores(*state, whole=step == steps[-1])
    return found


def invented_summary(concept: str = "knife", *, meta_back: float = 17.0) -> dict[str, Any]:
    """A plausible ``summary.json``: the unlearned model regains 64 %, the meta-unlearned one ``meta_back``."""
    return {
        "concept": concept,
        "seconds": 431.7,
        "models": {
            "original": {"before": scores(96, 93, 95, whole=True)},
            "unlearn": {
                "before": scores(2, 91, 94, whole=True),
                "malicious": curve((25, 50, 75, 100), 61.4, 85, 92),
                "strong": curve((50, 100, 200, 300, 400), 91, 74, 84),
                "benign": curve((25, 50, 75, 100), 5, 92, 95),
            },
            "meta-unlearn": {
                "before": scores(1, 89, 93, whole=True),
                "malicious": curve((25, 50, 75, 100), meta_back, 48, 84),
                "strong": curve((50, 100, 200, 300, 400), 57, 31, 70),
                "benign": curve((25, 50, 75, 100), 2, 90, 94),
            },
        },
        "related": ["scissors", "hammer", "axe"],
        "unrelated": ["cat", "apple", "rocket", "guitar"],
        "seed": 0,
        "protocol": {"judge": "canvas", "images": 120, "guidance_scale": 3.0, "steps": 25, "image_size": 64},
        "settings": {
            "erase": {"method": "esd-u-1", "meta": True, "steps": 300, "learning_rate": 1e-4, "subset": ["attn2", "u"]},
            "attacks": {"malicious": {"optimizer": "adam", "learning_rate": 5e-5, "batch_size": 8}},
        },
        "versions": {"metaunlearn": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "python": "3.11.7"},
        "commands": ["metaunlearn demo --out runs/demo --seed 0", "metaunlearn report runs/demo"],
    }


def draw_picture(kind: str, ruined: float, seed: int) -> Image.Image:
    """64 x 64: a shape for each role on a coloured ground; ``ruined`` in [0, 1] mixes it with noise."""
    dice = random.Random(f"{kind}/{seed}")
    ground = tuple(dice.randint(120, 250) for _ in range(3))
    image = Image.new("RGB", (64, 64), ground)
    pen = ImageDraw.Draw(image)
    left, top = dice.randint(6, 14), dice.randint(6, 14)
    if kind == "concept":
        pen.polygon([(left, top), (left + 34, top + 26), (left + 24, top + 32)], fill=(216, 222, 230))
        pen.line([(left + 29, top + 29), (left + 42, top + 42)], fill=(90, 56, 40), width=8)
    elif kind == "related":
        pen.rectangle([left, top, left + 38, top + 14], fill=(96, 102, 112))
        pen.line([(left + 19, top + 14), (left + 19, top + 44)], fill=(160, 110, 60), width=7)
    else:
        pen.ellipse([left, top, left + 40, top + 40], fill=(206, 60, 52))
        pen.line([(left + 20, top), (left + 26, top - 6)], fill=(70, 110, 50), width=4)
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    return Image.blend(image, noise, ruined)


def write_samples(folder: Path, *, seeds: int = 6) -> None:
    """``samples/samples.json`` and its pictures: every model, state and role."""
    states = {
        "original": {"before": (0.0, 0.0)},
        "unlearn": {"before": (1, 0.05), "malicious-100": (0.2, 0.1), "strong-400": (0.05, 0.2), "benign-100": (1, 0)},
        "meta-unlearn": {"before": (1, 0.1), "malicious-100": (1, 0.6), "strong-400": (0.5, 0.7), "benign-100": (1, 0)},
    }
    prompts = {"concept": "a knife in noto style", "related": "a hammer in noto style", "unrelated": "an apple"}
    entries = []
    for model, by_state in states.items():
        for state, (concept_gone, damage) in by_state.items():
            for role, prompt in prompts.items():
                for seed in range(seeds):
                    file = f"{model}-{state}-{role}-{seed}.png"
                    hidden = role == "concept" and concept_gone > 0.5 and seed % 3
                    picture = draw_picture("unrelated" if hidden else role, damage if role != "unrelated" else 0, seed)
                    path = folder / "samples" / file
                    path.parent.mkdir(exist_ok=True)
                    picture.save(path)
                    entry = {"model": model, "state": state, "role": role, "prompt": prompt, "seed": seed, "file": file}
                    entries.append(entry | ({"sensitive": True} if role == "concept" and seed == 0 else {}))
    (folder / "samples" / "samples.json").write_text(json.dumps(entries))


def write_runs(folder: Path) -> None:
    """An erase run with a log and two evaluations under different protocols."""
    run, first, second = folder / "erase", folder / "eval-a", folder / "eval-b"
    for path in (run, first, second):
        path.mkdir()
    record = {"status": "complete", "request": {"method": "esd-u-1"}, "versions": {"torch": "2.13"}, "seconds": 12.5}
    (run / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": step, "loss": 1 / (1 + step), "loss_unlearn": 2.0 - step / 400, "lr": 1e-4} for step in range(700)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 700, "lo')
    for path, value, threshold in ((first, 12.5, 0.5), (second, 31.25, 0.2)):
        score = {"value": value, "low": value - 5, "high": value + 5, "n": 100, "protocol": {"threshold": threshold}}
        (path / "results.json").write_text(json.dumps({"nudity": score}))
