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
        str, typer.Option("--precision", metavar="NAME", help="float32, fp16 or bf16 (float16, bfloat16).")
    ] = "float32",
    as_json: o.Json = False,
) -> None:
    """Write MODEL as one file.

    ComfyUI and A1111 load it.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.exporting import export as run

        summary = run(model, out, precision=precision)
    console.result(summary, f"{summary['architecture']}, {summary['bytes'] / 2**20:.1f} MiB: {out}")


Base = Annotated[str, typer.Argument(metavar="BASE", help="The model that was erased from, as MODEL elsewhere.")]


def delta(
    base: Base,
    model: Annotated[str, typer.Argument(metavar="DIR", help="What was erased from it.")],
    out: File,
    as_json: o.Json = False,
) -> None:
    """Write what erasing changed.

    FILE is useless without BASE.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.delta import make_delta

        summary = make_delta(base, model, out)
    console.result(summary, f"{summary['tensors']} tensors, {summary['bytes'] / 2**20:.1f} MiB: {out}")


def apply(
    base: Base,
    file: Annotated[Path, typer.Argument(metavar="DELTA", help="What erase --delta or metaunlearn delta wrote.")],
    out: o.Out,
    as_json: o.Json = False,
) -> None:
    """Apply a delta to BASE.

    DIR becomes, bit for bit, the model that was erased.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.delta import apply_delta

        summary = apply_delta(base, file, out)
    console.result(summary, f"applied to {', '.join(summary['components'])}: {out}")


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A complete run of erase.")],
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="NAME", help="The base model's, e.g. creativeml-openrail-m.")
    ] = None,
    push: o.Push = None,
    as_json: o.Json = False,
) -> None:
    """Write DIR/README.md.

    It has what attacks and evaluations beside DIR measured.
    """
    with working(as_json=as_json) as console:
        from metaunlearn.cards import write_card
        from metaunlearn.publishing import push as upload
        from metaunlearn.publishing import sign_in

        hub = sign_in(push) if push is not None else None
        file = write_card(folder, licence=licence)
        if push is not None and hub is not None:
            upload(folder, push, hub)
    console.result({"card": str(file), "pushed": push}, f"card: {file}", *([f"pushed: {push}"] if push else []))
