"""The command ``tune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaunlearn.cli import options as o
from metaunlearn.cli.console import working
from metaunlearn.cli.tables import table
from metaunlearn.errors import UserError

if TYPE_CHECKING:
    from metaunlearn.tuning.run import TrialCost, TuneResult


def tune(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped search (metaunlearn recipes list) or a file.")
    ],
    out: o.Out,
    trials: Annotated[
        int | None, typer.Option("--trials", min=0, metavar="N", help="How many in all; by default the recipe's.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Processes of this machine that share the work.")
    ] = 1,
    resume: o.Resume = False,
    plan: Annotated[bool, typer.Option("--dry-run", help="Say what one trial costs, and run nothing.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Instead: attack the frontier as the search never did.")
    ] = False,
    trial: Annotated[
        list[int] | None,
        typer.Option("--trial", metavar="N", help="With --report: this trial, not the frontier; repeatable."),
    ] = None,
    device: o.Device = "cpu",
    as_json: o.Json = False,
) -> None:
    """Search settings of erasing for a frontier.

    What comes back under the worst attack against what was lost; DIR keeps every trial.
    """
    if report and (plan or trials is not None or workers != 1):
        raise UserError("--report searches nothing: leave out --dry-run, --trials and --workers.")
    if trial and not report:
        raise UserError("--trial N chooses what --report attacks; give both, or neither.")
    with working(as_json=as_json) as console:
        if plan:
            from metaunlearn.tuning.run import dry_run

            cost = dry_run(recipe, out, trials=trials, device=device)
            console.result(cost.to_dict(), *_cost_lines(cost))
            return
        if report:
            from metaunlearn.tuning.report import report as run_report

            summary: dict[str, Any] = run_report(
                recipe, out, trials=trial or (), device=device, progress=console.progress
            )
            console.result(summary, _report_table(summary), f"report: {summary['report']}")
            return
        from metaunlearn.tuning.run import tune as run

        result = run(
            recipe, out, trials=trials, workers=workers, resume=resume, device=device,
            progress=console.progress,
        )  # fmt: skip
    console.result(result.to_dict(), *_result_lines(result))


def _cost_lines(cost: TrialCost) -> list[str]:
    once = f"; {cost.once} pieces of work are made once for all trials" if cost.once else ""
    erasing = "time not known" if cost.seconds_erasing is None else f"about {cost.seconds_erasing:.0f} s, estimate"
    measured = "not known before the first" if cost.seconds is None else f"{cost.seconds:.0f} s, measured here"
    return [
        f"one trial: {cost.outer_steps} outer steps ({erasing}), "
        f"{cost.attack_steps} attack steps, {cost.pictures} pictures{once}",
        f"time of a trial: {measured}",
        f"trials still to run, with the two baselines: {cost.trials}",
    ]


def _result_lines(result: TuneResult) -> list[str]:
    rows = [
        (str(record.trial), record.role, f"{record.regained:.1f}", f"{record.lost:.1f}") for record in result.frontier
    ]
    found = result.to_dict()
    failed = f", {len(found['failed'])} failed" if found["failed"] else ""
    return [
        f"{len(result.records)} trials have ended{failed}; the frontier:",
        table(("trial", "role", "regained, %", "lost, points"), rows),
        f"all of them: {found['page']}",
        f"figure: {found['figure']}",
    ]


def _report_table(summary: dict[str, Any]) -> str:
    rows = [
        (str(one["trial"]), one["role"], f"{one['seen']['worst']:.1f}", f"{one['unseen']['worst']:.1f}")
        for one in summary["trials"]
    ]
    return table(("trial", "role", "worst of the selection set, %", "worst never seen, %"), rows)
