"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaunlearn.errors import UserError

_MODEL = typer.Argument(
    metavar="MODEL", help="A diffusers folder, a .safetensors checkpoint, a hub id, or 'canvas', which is embedded."
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where the result goes: a new or empty folder, or a run to resume.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Every random draw follows from it.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps ...")]
Images = Annotated[int, typer.Option("--images", min=1, metavar="N", help="Images of each prompt.")]
SamplingSteps = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="N", help="Sampling steps; by default MODEL's own.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", min=0, metavar="S", help="Guidance scale, of all prompts; by default theirs, or MODEL's."
    ),
]
_METHOD = typer.Option(
    "--method",
    metavar="NAME",
    help="How it is erased: esd-SUBSET-ETA (e.g. esd-x-1, esd-f-3), esd-2025, sdd, uce, uce-2025, rece, "
    "resalign, imma.",
)
Method = Annotated[str, _METHOD]
OptionalMethod = Annotated[str | None, _METHOD]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="J",
        help="A CLIPModel or image classifier: a folder, or ID[@REVISION] on the hub. Canvas has its own, canvas.",
    ),
]
Concept = Annotated[str | None, typer.Option("--concept", metavar="TEXT", help="What the judge looks for.")]
Alternatives = Annotated[
    list[str] | None, typer.Option("--alternative", metavar="TEXT", help="What it may see instead; repeatable.")
]
Recipe = Annotated[
    str | None,
    typer.Option("--recipe", metavar="FILE", help="A shipped recipe or a TOML file; by default one for MODEL's size."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
]
DrawOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="precision=tf32, bf16 or fp16; picture_batch=N pictures at once; repeatable."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Push = Annotated[
    str | None, typer.Option("--push", metavar="REPO", help="Upload DIR to this repository of the hub, OWNER/NAME.")
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", metavar="NAME", help="Also log to tensorboard, wandb or trackio; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def parse_steps(text: str) -> tuple[int, ...]:
    """``"0,50,100"`` as ascending whole numbers from 0 on, each once."""
    parts = [part.strip() for part in text.split(",")]
    steps = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    if len(steps) != len(parts) or list(steps) != sorted(set(steps)):
        raise UserError(
            "the steps must be whole numbers from 0 on, ascending, each once, with commas between them, e.g. 0,50,100; "
            f"got {text!r} (steps=..., --steps)."
        )
    return steps


def parse_numbers(text: str) -> tuple[float, ...]:
    """``"0.25,0.5,1"`` as finite numbers of at least 0."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 <= number < float("inf") for number in numbers):
        raise UserError(
            "the strengths must be numbers of at least 0 with commas between them, e.g. 0.25,0.5,1; "
            f"got {text!r} (strengths=..., --strengths)."
        )
    return numbers


def names(text: str) -> list[str]:
    """``"concept, fid"`` as its parts, empty ones left out."""
    return [part.strip() for part in text.split(",") if part.strip()]
