"""``metaunlearn data``: data sets drawn by a generator, and published prompt sets from a copy of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working

data = typer.Typer(help="Make the paper's data sets; read published prompt sets.", no_args_is_help=True)


@data.command()
def make(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="forget, retain-related, retain-unrelated, hrm-s, hrm-m, clean, ...")
    ],
    generator: Annotated[
        str, typer.Option("--generator", metavar="MODEL", help="What draws: any text-to-image pipeline; canvas.")
    ],
    out: o.Out,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts instead of the set's own.")
    ] = None,
    overrides: o.Overrides = None,
    seed: o.Seed = 0,
    shard: Annotated[str, typer.Option("--shard", metavar="K/N", help="Draw this share; all into one DIR.")] = "1/1",
    device: o.Device = "cpu",
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Draw a data set as an imagefolder.

    DIR gets PNGs with metadata.jsonl and a contact sheet; duplicates are left out.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.making import make_set

        summary = make_set(
            name,
            out,
            generator=generator,
            prompts=prompts,
            overrides=overrides or (),
            seed=seed,
            shard=shard,
            device=device,
            resume=resume,
            progress=console.pictures("drawing"),
        )
    if summary.get("pending"):
        console.result(summary, f"this share is drawn; {summary['pending']} pictures are left to other shards")
    else:
        dropped = len(summary["duplicates"])
        console.result(summary, f"{summary['images']} pictures ({dropped} duplicates left out): {out}")


@data.command()
def prompts(
    name: Annotated[str, typer.Argument(metavar="NAME", help="i2p-nudity or coco-10k.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .jsonl file to write, for --prompts.")],
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Your copy of the set; by default the hub's cache.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Take a published prompt set from your copy.

    With each prompt's own seed and guidance.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.data.prompt_sets import take

        summary = take(name, source, out)
    console.result(summary, f"{summary['prompts']} prompts: {out}")


@data.command(name="list")
def list_sets(as_json: o.Json = False) -> None:
    """The data sets and prompt sets, and what each is for."""
    with working(as_json=as_json) as console:
        from metaunlearn.data.prompt_sets import PROMPT_SETS
        from metaunlearn.data.recipes import RECIPES

        found = {name: recipe.description for name, recipe in RECIPES.items()}
        found |= {name: prompt_set.description for name, prompt_set in PROMPT_SETS.items()}
    width = max(map(len, found))
    console.result({"sets": found}, *(f"{name:<{width}}  {description}" for name, description in found.items()))
