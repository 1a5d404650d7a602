"""The commands, each a thin shell over one function of the library; torch is imported only when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from metaunlearn.cli import checkpoints
from metaunlearn.cli import options as o
from metaunlearn.cli.attack import attack
from metaunlearn.cli.console import working
from metaunlearn.cli.datasets import data as data_sets
from metaunlearn.cli.evaluate import evaluate
from metaunlearn.cli.grids import bench
from metaunlearn.cli.information import doctor, recipes
from metaunlearn.cli.measuring import FETCHING, compare, convert, rescore, table
from metaunlearn.cli.tables import story_lines
from metaunlearn.cli.tuning import tune
from metaunlearn.errors import UserError

app = typer.Typer(
    help="Erase concepts from text-to-image diffusion models so that they stay erased.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes, name="recipes")
app.add_typer(data_sets, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from metaunlearn import __version__

        print(f"metaunlearn {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Both are acted on elsewhere: --debug in main(), before the call is parsed.
    pass


@app.command()
def demo(
    out: o.Out = Path("runs/demo"),
    concept: Annotated[
        str | None,
        typer.Option("--concept", metavar="TEXT", help="An object or a style that Canvas knows; by default a knife."),
    ] = None,
    method: o.OptionalMethod = None,
    recipe: o.Recipe = "demo",
    overrides: o.Overrides = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Erase, attack, evaluate and report on the embedded model."""
    with working(as_json=as_json) as console:
        from metaunlearn.story import demo as run

        summary = run(
            out,
            concept=concept,
            method=method,
            recipe=recipe or "demo",
            overrides=overrides or (),
            seed=seed,
            resume=resume,
            progress=console.progress,
        )
    console.result(summary, *story_lines(summary), "", f"report: {out / 'report.html'}")


@app.command()
def erase(
    model: o.Model,
    concept: Annotated[
        list[str], typer.Option("--concept", metavar="TEXT", help="What to erase; synonyms with | between; repeatable.")
    ],
    out: o.Out,
    method: o.Method = "esd-u-1",
    meta: Annotated[
        bool | None,
        typer.Option(
            "--meta/--no-meta",
            help="Make it hard to bring the concept back; on, but with methods that have a defence of their own.",
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option("--retain", metavar="TEXT", help="Unrelated, to be kept; repeatable. none: keep no list of ours."),
    ] = None,
    related: Annotated[
        list[str] | None, typer.Option("--related", metavar="TEXT", help="Related, to be kept; repeatable.")
    ] = None,
    forget_data: Annotated[
        Path | None, typer.Option("--forget-data", metavar="DIR", help="Images of the concept, instead of MODEL's own.")
    ] = None,
    retain_data: Annotated[
        Path | None, typer.Option("--retain-data", metavar="DIR", help="Images to be kept, instead of MODEL's own.")
    ] = None,
    recipe: o.Recipe = None,
    overrides: o.Overrides = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    resume: o.Resume = False,
    delta: Annotated[
        bool, typer.Option("--delta", help="Also write DIR/delta.safetensors, for metaunlearn apply.")
    ] = False,
    push: o.Push = None,
    tracker: o.Trackers = None,
    as_json: o.Json = False,
) -> None:
    """Erase concepts from MODEL.

    DIR becomes an ordinary diffusers pipeline, with run.json and log.jsonl beside it.
    """
    with working(as_json=as_json, shared=True) as console:
        from metaunlearn.erasing import erase as run
        from metaunlearn.processes import join

        result = run(
            model,
            concept,
            method=method,
            meta=meta,
            retain=retain or (),
            related=related or (),
            forget_data=forget_data,
            retain_data=retain_data,
            recipe=recipe,
            overrides=overrides or (),
            seed=seed,
            processes=join(device),
            device=device,
            out=out,
            resume=resume,
            delta=delta,
            push=push,
            trackers=tracker or (),
            progress=console.progress,
        )
    console.result({"out": str(out), **result.summary}, f"erased {', '.join(concept)}: {out}")


app.command()(attack)


@app.command()
def generate(
    model: o.Model,
    out: o.Out,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT", help="A prompt; repeatable.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts as .txt, .csv, .json or .jsonl.")
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
    """Draw pictures.

    DIR gets PNGs with metadata.jsonl, so that it can be --data of an attack, and a contact sheet.
    """
    if (prompt is None) == (prompts is None):
        raise UserError("give either --prompt TEXT (repeatable) or --prompts FILE.")
    with working(as_json=as_json, shared=True) as console:
        from metaunlearn.data.imagefolder import SHEET
        from metaunlearn.generating import generate_into
        from metaunlearn.processes import join

        summary = generate_into(
            model,
            prompts if prompts is not None else list(prompt or ()),
            out,
            images=images,
            steps=steps,
            guidance_scale=guidance,
            overrides=overrides or (),
            seed=seed,
            processes=join(device),
            device=device,
            resume=resume,
            progress=console.pictures("drawing"),
        )
    console.result(summary, f"{summary['images']} pictures: {out}", f"contact sheet: {out / SHEET}")


app.command()(evaluate)
app.command(name="bench")(bench)
app.command(name="tune")(tune)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with results: a demo's, or any runs'.")],
    as_json: o.Json = False,
) -> None:
    """Build DIR/report.html from what lies in DIR.

    One page that needs no network. Of a folder of bench: DIR/RECIPE/report.html of each recipe that was run there; of a
    folder above one, a page that links to those.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.report.page import build_report
        from metaunlearn.report.runs import grids_in

        pages = [str(build_report(one)) for one in grids_in(folder) or [folder]]
    more: dict[str, Any] = {"more": pages[1:]} if len(pages) > 1 else {}
    console.result({"report": pages[0], **more}, *(f"report: {page}" for page in pages))


app.command(name="import")(checkpoints.import_)
app.command(name="export")(checkpoints.export)
app.command(name="delta")(checkpoints.delta)
app.command(name="apply")(checkpoints.apply)
app.command(name="card")(checkpoints.card)
app.command(name="doctor")(doctor)
for _command in (table, compare, rescore):
    app.command()(_command)
app.command(epilog=FETCHING)(convert)
