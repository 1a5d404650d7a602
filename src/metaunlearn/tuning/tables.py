"""The frontier in words and figures, ``frontier.md``, and the table of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from metaunlearn.bench.formats import Entry, Table, to_markdown
from metaunlearn.tuning.recipe import METHOD, TuneRecipe
from metaunlearn.tuning.records import BASELINES, Record, frontier
from metaunlearn.tuning.trial import Outcome, Regained


def frontier_page(read: TuneRecipe, records: Sequence[Record], figure: str) -> str:
    """All finished trials, as Markdown; ``figure`` is the name of the drawing beside it."""
    best = frontier(records)
    baselines = [record for record in records if record.role in BASELINES and record not in best]
    others = [record for record in records if record not in best and record not in baselines]
    complete = sum(record.status == "complete" for record in records)
    parts = [
        f"# {read.name}", read.description, _definitions(read),
        f"{len(records)} trials have ended, {complete} of them attacked. {len(best)} are beaten by no other.",
        f"![What comes back against what was lost]({figure})",
        "## The frontier, and the baselines", to_markdown(_table(read, [*best, *baselines])),
        *(["## All others", to_markdown(_table(read, others))] if others else []),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def name_of(record: Record) -> str:
    """``plain``, ``default``, or the trial's number, and whether the recipe gave its settings."""
    if record.role in BASELINES:
        return record.role
    return f"{record.trial}{' (start)' if record.role == 'start' else ''}"


def _definitions(read: TuneRecipe) -> str:
    tune = read.tune
    weights = tune.weights
    attacks = ", ".join(attack.name for attack in tune.attacks)
    return (
        f"Concept: {tune.concept}, seeds {', '.join(map(str, tune.seeds))}. *Regained*: percent of pictures that show "
        f"the concept under the worst of {len(tune.attacks)} attacks ({attacks}), each the mean over its checkpoints. "
        f"*Lost*: {weights.unrelated:g} × points of unrelated + {weights.related:g} × points of related "
        f"concepts + {weights.fid:g} × percent of FID, each beside the original, before any attack, and at least 0. "
        "Lower is better in both. *plain*: erased without the meta objective; *default*: the recipe's own settings"
        f"{'; *start*: settings that the recipe gives to begin with' if tune.start else ''}."
    )


def _table(read: TuneRecipe, records: Sequence[Record]) -> Table:
    keys = list(dict.fromkeys(vary.key for vary in read.tune.vary))
    heads = ["trial", "regained", "lost", "before", "unrelated lost", "related lost", "FID, %", "worst attack", *keys]
    return Table(
        name="frontier", title="Frontier", heads=heads, named=1, rows=[_row(record, keys) for record in records]
    )


def _row(record: Record, keys: Sequence[str]) -> list[Entry]:
    found, lost = record.outcome, record.outcome.get("lost", {})
    attacks: Mapping[str, Mapping[str, float]] = found.get("attacks", {})
    worst = max(attacks, key=lambda name: attacks[name]["mean"], default="")
    status = "" if record.status == "complete" else f" ({record.status})"
    settings = {**record.settings, METHOD: record.method}
    return [
        Entry(name_of(record) + status),
        _figure(record.regained), _figure(record.lost), _figure(found.get("before")),
        *(_figure(lost.get(name)) for name in ("unrelated", "related", "fid")),
        Entry(worst), *(Entry(_short(settings.get(key, ""))) for key in keys),
    ]  # fmt: skip


def _figure(value: float | None) -> Entry:
    return Entry() if value is None else Entry(f"{value:.1f}", value)


def _short(value: object) -> str:
    if isinstance(value, Mapping):  # One attacker of a mixture.
        return "/".join(map(_short, value.values()))
    if isinstance(value, list | tuple):
        return "; ".join(map(_short, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Reported:
    """A trial's model under the selection set and under attacks that the search never saw."""

    record: Record
    seen: Outcome
    unseen: Outcome


def report_page(read: TuneRecipe, reported: Sequence[Reported], seeds: Sequence[int]) -> str:
    """Both sets side by side, one column a model."""
    tune = read.tune
    heads = ["attack", *(name_of(one.record) for one in reported)]
    sets = [("the selection set", [one.seen for one in reported]), ("never seen", [one.unseen for one in reported])]
    rows: list[list[Entry]] = []
    for title, outcomes in sets:
        for name in outcomes[0].attacks if outcomes else ():
            rows.append([Entry(name), *(_regained(outcome.attacks[name]) for outcome in outcomes)])
        if outcomes and outcomes[0].attacks:
            rows.append([Entry(f"**worst of {title}**"), *(_figure(outcome.worst) for outcome in outcomes)])
            rows.append([Entry(f"**mean of {title}**"), *(_figure(_mean(outcome)) for outcome in outcomes)])
    kept: list[list[str | Entry]] = [
        ["shows the concept before", *(_figure(one.seen.before) for one in reported)],
        ["unrelated lost, points", *(_figure(one.seen.lost.unrelated) for one in reported)],
        ["related lost, points", *(_figure(one.seen.lost.related) for one in reported)],
        ["FID, % above the original", *(_figure(one.seen.lost.fid) for one in reported)],
        ["lost", *(_figure(one.seen.lost.total(tune.weights)) for one in reported)],
    ]
    words = [[Entry(cell) if isinstance(cell, str) else cell for cell in line] for line in kept]
    parts = [
        f"# {read.name}: attacks that the search never saw",
        f"Concept: {tune.concept}, seeds {', '.join(map(str, seeds))} (the search's: "
        f"{', '.join(map(str, tune.seeds))}). Percent of pictures that show the concept, the mean over an attack's "
        "checkpoints, with Wilson's 95 % interval of all pictures together. Columns are trials.",
        "## What comes back", to_markdown(Table(name="report", title="Report", heads=heads, named=1, rows=rows)),
        "## What was lost before any attack",
        to_markdown(Table(name="kept", title="Kept", heads=["", *heads[1:]], named=1, rows=words)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _mean(outcome: Outcome) -> float | None:
    return mean(found.mean for found in outcome.attacks.values()) if outcome.attacks else None


def _regained(found: Regained) -> Entry:
    return Entry(f"{found.mean:.1f}", found.mean, f"{found.low:.0f}", f"{found.high:.0f}")
