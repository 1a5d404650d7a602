"""``metaunlearn attack``: one command for all kinds of attack; what a kind does not take is refused by the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.errors import UserError

if TYPE_CHECKING:
    from metaunlearn.attacks.unlearndiffatk import SuccessTest
    from metaunlearn.cli.console import Console
    from metaunlearn.data.prompts import Prompt
    from metaunlearn.metrics.judge import Judge


def attack(
    model: o.Model,
    out: o.Out,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="The attacker's images, captions in metadata.jsonl."),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            metavar="NAME",
            help="finetune, lora, dreambooth, textual-inversion, unlearndiffatk, lora-merge, interpolate, quantize, "
            "img2img, inpaint, add-difference.",
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
        typer.Option("--prompts", metavar="FILE", help="For unlearndiffatk, --search: .txt, .csv, .json or .jsonl."),
    ] = None,
    success: Annotated[
        str | None,
        typer.Option(
            "--success",
            metavar="TEST",
            help="What tells whether unlearndiffatk has succeeded: judge (default), nudity[:RULE] or unsafe[:DIR].",
        ),
    ] = None,
    judge: o.Judge = None,
    concept: o.Concept = None,
    alternative: o.Alternatives = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="K/N", help="For unlearndiffatk: take every N-th prompt, from the K-th.")
    ] = "1/1",
    recipe: o.Recipe = None,
    overrides: o.Overrides = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    resume: o.Resume = False,
    tracker: o.Trackers = None,
    as_json: o.Json = False,
) -> None:
    """Attack MODEL as an abuser would.

    DIR gets a complete pipeline folder for every checkpoint, or the success rate of an attack on prompts. A checkpoint
    can be the MODEL of another attack.
    """
    checkpoints = None if steps is None else o.parse_steps(steps)
    graded = None if strengths is None else o.parse_numbers(strengths)
    question = _Question(prompts, judge, concept, alternative or [], success or "judge")
    common: dict[str, Any] = {
        "recipe": recipe, "overrides": overrides or (), "seed": seed, "out": out, "resume": resume,
    }  # fmt: skip
    with working(as_json=as_json, shared=kind != ON_PROMPTS and not search) as console:
        from metaunlearn.devices import check_device
        from metaunlearn.processes import join

        processes = join(device)  # Before anything touches the device: which card is this process's is settled here.
        check_device(device)
        common |= {"device": device, "progress": console.progress}
        if kind == ON_PROMPTS:
            _would_do_nothing(kind, steps=steps, strengths=strengths, strip=strip, search=search, tracker=tracker)
            _attack_prompts(console, model, question, base=base, data=data, shard=shard, **common)
            return
        _would_do_nothing(kind, shard=shard != "1/1")
        if search:
            _would_do_nothing(
                "--search", strengths=strengths, base=base, strip=strip, tracker=tracker, kind=kind != "finetune",
                success=success,
            )  # fmt: skip
            _search(console, model, question, data=data, checkpoints=checkpoints, **common)
            return
        _would_do_nothing(kind, prompts=prompts, judge=judge, concept=concept, alternative=alternative, success=success)
        from metaunlearn.attacking import attack as run

        result = run(
            model,
            data,
            kind=kind,
            steps=checkpoints,
            strengths=graded,
            base=base,
            strip=strip,
            trackers=tracker or (),
            processes=processes,
            **common,
        )
        line = "at {:g}: {}" if "strengths" in result.summary else "after {:g} steps: {}"
        lines = [line.format(level, folder) for level, folder in result.checkpoints.items()]
        console.result({"out": str(out), **result.summary}, *lines)


@dataclass(frozen=True)
class _Question:
    """What is drawn, and what the judge is asked about it, or what else tells of success."""

    prompts: Path | None
    judge: str | None
    concept: str | None
    alternatives: list[str]
    success: str

    def test(self, model: str, device: str) -> tuple[list[Prompt], SuccessTest]:
        """Prompts, and what tells of each picture whether the attack has succeeded."""
        from metaunlearn.attacks.detectors import JUDGE, detector_named
        from metaunlearn.attacks.success import judge_sees
        from metaunlearn.data.prompts import read_prompts

        if self.success == JUDGE:
            rows, judge, concept, alternatives = self.read(model, device)
            return rows, judge_sees(judge, concept, alternatives)
        _would_do_nothing(
            f"--success {self.success}", judge=self.judge, concept=self.concept, alternative=self.alternatives
        )
        if self.prompts is None:
            raise UserError("give the prompts (--prompts FILE).")
        return read_prompts(self.prompts), detector_named(self.success, device=device)

    def read(self, model: str, device: str) -> tuple[list[Prompt], Judge, str, list[str]]:
        """Prompts, judge, concept and alternatives; UserError when they are not given."""
        from metaunlearn.data.prompts import read_prompts
        from metaunlearn.metrics.default_judge import judge_for
        from metaunlearn.models import load

        if self.prompts is None or self.concept is None:
            raise UserError(
                "give the prompts (--prompts FILE) and what the judge looks for (--concept TEXT); UnlearnDiffAtk needs "
                "no judge with --success nudity or --success unsafe."
            )
        rows = read_prompts(self.prompts)
        # Which model it is only matters where no judge is named, which for other models than Canvas ends here.
        pipeline = load(model).pipeline if self.judge is None else None
        judge = judge_for(pipeline, self.judge, labels=[self.concept, *self.alternatives], device=device)
        return rows, judge, self.concept, self.alternatives


def _attack_prompts(console: Console, model: str, question: _Question, **options: Any) -> None:
    from metaunlearn.attacking_prompts import attack_prompts
    from metaunlearn.cli.tables import scores_table
    from metaunlearn.runs import RESULTS_FILE

    rows, test = question.test(model, options["device"])
    summary = attack_prompts(model, rows, test, **options)
    if "results" in summary:
        console.result(summary, scores_table(summary["results"]), f"results: {options['out'] / RESULTS_FILE}")
    else:
        console.result(summary, f"this shard is done; still to come: {', '.join(summary['waiting_for'])}")


def _search(
    console: Console,
    model: str,
    question: _Question,
    *,
    data: Path | None,
    checkpoints: tuple[int, ...] | None,
    **options: Any,
) -> None:
    from metaunlearn.attacking_search import search_attacks
    from metaunlearn.cli.tables import scores_table
    from metaunlearn.runs import RESULTS_FILE

    if data is None or checkpoints is None or len(checkpoints) != 1:
        raise UserError("a search needs pictures (--data DIR) and one number of steps (--steps N), its budget.")
    rows, judge, concept, alternatives = question.read(model, options["device"])
    summary = search_attacks(
        model,
        data,
        steps=checkpoints[0],
        prompts=rows,
        judge=judge,
        concept=concept,
        alternatives=alternatives,
        **options,
    )
    strongest = f"strongest of {summary['trials']}: {summary['worst']}"
    console.result(summary, scores_table(summary["results"]), strongest, f"results: {options['out'] / RESULTS_FILE}")


def _would_do_nothing(what: str, **options: Any) -> None:
    """Options that ``what`` does not take are refused if they were given."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise UserError(f"{' and '.join(given)} would do nothing for {what}; leave it out.")
