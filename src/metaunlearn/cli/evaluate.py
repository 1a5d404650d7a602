"""``metaunlearn evaluate``: pictures that MODEL draws for it, or that lie there already, scored alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.cli.tables import scores_table
from metaunlearn.errors import UserError


def evaluate(
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            metavar="NAME,NAME",
            help="concept, accuracy, clip-score[:RULE], fid[:FILE], kid[:FILE], ua, ira, cra, nudity[:RULE], "
            "unsafe[:DIR], nsfw:FILE.",
        ),
    ],
    out: o.Out,
    model: o.OptionalModel = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Score these pictures; no MODEL then.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts as .txt, .csv, .json or .jsonl; of --pictures, their labels and roles.",
        ),
    ] = None,
    judge: o.Judge = None,
    concept: o.Concept = None,
    alternative: o.Alternatives = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="DIR", help="Real images, for fid and kid.")
    ] = None,
    images: o.Images = 1,
    steps: o.SamplingSteps = None,
    guidance: o.Guidance = None,
    overrides: o.DrawOverrides = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Score the pictures that MODEL draws.

    DIR/results.json gets each figure with its 95 % interval and its protocol.
    """
    if (model is None) == (pictures is None):
        raise UserError("give either MODEL, which draws the pictures (and --prompts FILE), or --pictures DIR.")
    of_drawing = {"--images": images != 1, "--steps": steps, "--guidance": guidance is not None, "--set": overrides}
    useless = [option for option, given in of_drawing.items() if given]
    if pictures is not None and useless:
        raise UserError(f"{useless[0]} would do nothing for --pictures; leave it out.")
    common: dict[str, Any] = {
        "metrics": o.names(metrics), "judge": judge, "concept": concept, "alternatives": alternative or (),
        "reference": reference, "seed": seed, "resume": resume,
    }  # fmt: skip
    with working(as_json=as_json, shared=True) as console:
        from metaunlearn.processes import join
        from metaunlearn.runs import RESULTS_FILE

        common |= {"processes": join(device), "device": device}
        if pictures is not None:
            from metaunlearn.evaluating_pictures import evaluate_pictures_into

            summary = evaluate_pictures_into(
                pictures, out, prompts=prompts, progress=console.pictures("looking at"), **common
            )
        else:
            from metaunlearn.evaluating import evaluate_into

            assert model is not None
            if prompts is None:
                raise UserError("MODEL needs prompts to draw for: give --prompts FILE.")
            drawn: dict[str, Any] = {
                "images": images,
                "steps": steps,
                "guidance_scale": guidance,
                "overrides": overrides or (),
            }
            summary = evaluate_into(model, prompts, out, progress=console.pictures("drawing"), **drawn, **common)
    console.result(summary, scores_table(summary["results"]), f"results: {out / RESULTS_FILE}")
