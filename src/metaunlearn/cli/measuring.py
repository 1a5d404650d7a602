"""The commands on what was measured already, and on the weights that measuring needs: no picture is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.cli.tables import scores_table
from metaunlearn.files import check_new_file
from metaunlearn.pickles import PUBLISHED

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="An evaluation's folder.")]


def rescore(
    folder: Folder,
    rule: Annotated[str, typer.Option("--rule", metavar="NAME", help="A nudity rule, e.g. rece-9@0.6.")],
    as_json: o.Json = False,
) -> None:
    """Apply another nudity rule to what an evaluation saw.

    DIR/results.json gets the score beside those that it has.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.rescoring import rescore as run
        from metaunlearn.runs import RESULTS_FILE

        found = run(folder, rule)
    console.result({"out": str(folder), "results": found}, scores_table(found), f"results: {folder / RESULTS_FILE}")


def table(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Evaluations' folders.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there as Markdown, too.")] = None,
    as_json: o.Json = False,
) -> None:
    """Put the scores of several evaluations side by side.

    Refused where their protocols differ.
    """
    if out is not None:
        out = out.expanduser()
        check_new_file(out)
    with working(as_json=as_json) as console:
        from metaunlearn.files import write_atomic
        from metaunlearn.metrics.tables import table_of

        joined = table_of(folders)
        text = joined.markdown()
        if out is not None:
            write_atomic(out, text)
    rows = {name: {metric: score.to_dict() for metric, score in scores.items()} for name, scores in joined.rows.items()}
    console.result({"table": rows, "out": None if out is None else str(out)}, text.rstrip())


def compare(
    one: Folder,
    other: Folder,
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="Of results.json, e.g. concept or asr.")],
    seed: o.Seed = 0,
    as_json: o.Json = False,
) -> None:
    """Test whether two models differ.

    Paired, on the same prompts and seeds.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.comparing import compare as run

        found = run(one, other, metric, seed=seed)
    console.result(
        found,
        f"{metric}: {found['one']:.4g} and {found['other']:.4g}",
        f"difference {found['difference']:.4g} [{found['low']:.4g}, {found['high']:.4g}] on {found['n']} pairs, "
        f"{found['ties']} of them equal",
        f"p = {found['p']:.3g} ({found['test']})",
    )


FETCHING = "\b\n" + "\n".join(("Fetch the published files with", *(weights.fetch for weights in PUBLISHED.values())))
"""The end of convert's help, whose lines are not to be broken."""


def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="laion-nsfw-l14, laion-nsfw-h14 or inception-fid.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The published file of weights, a pickle.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    own: Annotated[bool, typer.Option("--own", help="FILE is of your own, not the published one.")] = False,
    as_json: o.Json = False,
) -> None:
    """Make safetensors of weights published as a pickle.

    It is read for its tensors alone; a file that holds code is refused, and so is another than the published one.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.converting import convert as run

        summary = run(name, file, out, published=not own)
    judge = f" --judge {summary['clip']}" if "clip" in summary else ""
    console.result(summary, f"{name}: {out}", f"measure with --metrics {summary['metrics']}{judge}")
