"""Commands between MODELs and the files that others load: import, export, delta, apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working

File = Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")]


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors checkpoint, as ComfyUI and A1111 load.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The diffusers folder to write: new or empty.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="DIR", help="A diffusers folder of the same family; weights are not read."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Turn a single-file checkpoint into a folder.

    Every other command takes DIR as its MODEL.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.exporting import import_checkpoint

        summary = import_checkpoint(file, out, config=config)
    console.result(summary, f"{summary['pipeline']}: {out}")


def export(
    model: o.Model,
    out: File,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="float32, float16 or bfloat16.")
    ] = "float32",
    as_json: o.Json = False,
) -> None:
    """Write MODEL as one file.

    ComfyUI and A1111 load it.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.exporting import export as run

        summary = run(model, out, precision=precision)  # type: ignore[arg-type]  # run() refuses what it does not know
    console.result(summary, f"{summary['architecture']}, {summary['bytes'] / 2**20:.1f} MiB: {out}")
