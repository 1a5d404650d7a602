"""``metaunlearn attack``: one command for all kinds of attack; what a kind does not take is refused by the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.errors import UserError

if TYPE_CHECKING:
    from metaunlearn.cli.console import Console

ON_PROMPTS = "unlearndiffatk"


def attack(
    model: o.Model,
    out: o.Out,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The attacker's images, with metadata.jsonl.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="NAME",
            help="finetune, lora, dreambooth, textual-inversion, unlearndiffatk, interpolate, lora-merge, img2img, "
            "inpaint, quantize.",
        ),
    ] = "finetune",
    steps: Annotated[
        str | None, typer.Option("--steps", metavar="N,N,...", help="Checkpoints of a training; by default 0,50,100.")
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option("--strengths", metavar="S,S,...", help="Of an attack that does not train; bits, for quantize."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The model before the erasing, where it is needed.")
    ] = None,
    strip: Annotated[
        str | None, typer.Option("--strip", metavar="TEXT", help="Draw this prompt after each of --steps: strip.png.")
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Try many finetunings of --steps N steps and report the strongest.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="For unlearndiffatk and --search: .txt, .csv or .jsonl."),
    ] = None,
    judge: o.Judge = "canvas",
    concept: o.Concept = None,
    alternative: o.Alternatives = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="For unlearndiffatk: take every N-th prompt, from the I-th.")
    ] = "0/1",
    recipe: o.Recipe = None,
    overrides: o.Overrides = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    resume: o.Resume = False,
    as_json: o.Json = False,
) -> None:
    """Attack MODEL as an abuser would.

    DIR gets a complete pipeline folder for every checkpoint, or the success rate of an attack on prompts.
    """
    checkpoints = None if steps is None else o.parse_steps(steps)
    graded = None if strengths is None else o.parse_numbers(strengths)
    common: dict[str, Any] = {
        "recipe": recipe, "overrides": overrides or (), "seed": seed, "out": out, "resume": resume,
    }  # fmt: skip
    judged = {"prompts": prompts, "concept": concept, "alternatives": alternative}
    on_prompts = kind == ON_PROMPTS
    if not (on_prompts or search):
        _refuse({**judged, "shard": None if shard == "0/1" else shard}, kind, "unlearndiffatk and --search")
    with working(as_json=as_json) as console:
        common |= {"device": o.check_device(device), "progress": console.progress}
        if on_prompts:
            _refuse({"steps": steps, "strengths": strengths, "strip": strip, "search": search or None}, kind)
            _attack_prompts(console, model, judge, judged, base=base, data=data, shard=shard, **common)
        elif search:
            refused = {"strengths": strengths, "base": base, "strip": strip}
            _refuse(refused | {"kind": None if kind == "finetune" else kind}, "--search", "other calls")
            _search(console, model, judge, judged, data=data, checkpoints=checkpoints, **common)
        else:
            from metaunlearn.attacking import attack as run

            result = run(model, data, kind=kind, steps=checkpoints, strengths=graded, base=base, strip=strip, **common)
            what = "at {:g}: {}" if "strengths" in result.summary else "after {:g} steps: {}"
            lines = [what.format(level, folder) for level, folder in result.checkpoints.items()]
            console.result({"out": str(out), **result.summary}, *lines)


def _attack_prompts(console: Console, model: str, judge: str, judged: dict[str, Any], **common: Any) -> None:
    from metaunlearn.attacking_prompts import attack_prompts
    from metaunlearn.attacks.success import judge_sees
    from metaunlearn.cli.tables import scores_table
    from metaunlearn.data.prompts import read_prompts
    from metaunlearn.metrics.judge import load_judge

    file, concept, alternatives = _judged(judged)
    rows = read_prompts(file)
    test = judge_sees(
        load_judge(judge, labels=[concept, *alternatives], device=common["device"]), concept, alternatives
    )
    summary = attack_prompts(model, rows, test, **common)
    if "results" in summary:
        console.result(summary, scores_table(summary["results"]), f"results: {common['out'] / 'results.json'}")
    else:
        console.result(summary, f"this shard is done; still to come: {', '.join(summary['waiting_for'])}")


def _search(
    console: Console,
    model: str,
    judge: str,
    judged: dict[str, Any],
    *,
    data: Path | None,
    checkpoints: tuple[int, ...] | None,
    **common: Any,
) -> None:
    from metaunlearn.attacking_search import search_attacks
    from metaunlearn.cli.tables import scores_table
    from metaunlearn.data.prompts import read_prompts
    from metaunlearn.metrics.judge import load_judge

    if data is None or checkpoints is None or len(checkpoints) != 1:
        raise UserError("a search needs pictures (--data DIR) and one number of steps (--steps N), its budget.")
    file, concept, alternatives = _judged(judged)
    rows = read_prompts(file)
    summary = search_attacks(
        model,
        data,
        steps=checkpoints[0],
        prompts=rows,
        judge=load_judge(judge, labels=[concept, *alternatives], device=common["device"]),
        concept=concept,
        alternatives=alternatives,
        **common,
    )
    strongest = f"strongest of {summary['trials']}: {summary['worst']}"
    console.result(summary, scores_table(summary["results"]), strongest, f"results: {common['out'] / 'results.json'}")


def _judged(judged: dict[str, Any]) -> tuple[Path, str, list[str]]:
    """The prompts' file, the concept and its alternatives, of which the first two must be given."""
    if judged["prompts"] is None or judged["concept"] is None:
        raise UserError(
            "give the prompts (--prompts FILE) and what the judge looks for in the pictures (--concept TEXT)."
        )
    return judged["prompts"], judged["concept"], judged["alternatives"] or []


def _refuse(options: dict[str, Any], kind: str, owners: str = "other kinds") -> None:
    """Options that would be ignored are refused."""
    options = {"alternative" if key == "alternatives" else key: value for key, value in options.items()}
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{' and '.join(given)} would do nothing for {kind}: only for {owners}. Leave it out.")
