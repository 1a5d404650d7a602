"""The measured rows of a grid, and what several seeds say together.

Percentages are pooled by their counts: hits and pictures add up over the seeds, and Wilson's interval is that of the
sums. It tells of the pictures' number, not of how differently two trainings can end; the seeds' own values do.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from metaunlearn.bench.inputs import BASE, JUDGE
from metaunlearn.bench.plan import Plan, Row
from metaunlearn.bench.recipe import BenchRecipe, Grid
from metaunlearn.bench.scores_asked import PERCENTAGES
from metaunlearn.bench.state import State
from metaunlearn.bench.store import Store
from metaunlearn.errors import UserError
from metaunlearn.files import read_json
from metaunlearn.metrics.intervals import comparable, wilson
from metaunlearn.metrics.scores_file import SCORES_FILE
from metaunlearn.runs import versions
from metaunlearn.settings import resolve

SCORES = (*PERCENTAGES, "clip_score", "fid")
"""Those that the first tables show; a recipe may name others."""
EACH = "each"
"""In the score ``concept``, a digit for each picture: 1 where the judge saw it."""
DIGEST_DIGITS = 8


@dataclass(frozen=True)
class Measured:
    """One measured state."""

    row: State
    cell: str
    """The name of the cell with its scores and pictures."""
    scores: dict[str, dict[str, Any]]
    """By score: value, low, high, n, hits (of a percentage), the digest of its protocol, and maybe ``each``."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a call of ``bench`` says beside the recipe and ``--set``, as its options have it."""

    only: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    use: tuple[str, ...] = ()
    device: str = "cpu"

    def words(self) -> list[str]:
        """Of a command."""
        said = {"--only": self.only, "--prompts": self.prompts, "--use": self.use}
        words = [word for option, values in said.items() for value in values for word in (option, value)]
        return [*words, *(["--device", self.device] if self.device != "cpu" else [])]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A grid as far as it is measured: what ``results.json`` says."""

    bench: str
    """The recipe's name, or its path."""
    description: str
    overrides: tuple[str, ...]
    """``KEY=VALUE`` of ``--set``, over the settings of every erasing."""
    asked: Asked = Asked()
    """By the last call."""
    grid: Grid
    rows_in_all: int
    rows: list[Measured]
    protocols: dict[str, dict[str, Any]]
    """By the digest that the scores have."""
    versions: dict[str, Any]

    @property
    def used(self) -> Grid:
        """``grid`` with the base model and the judge that the call gave in place of the recipe's (``--use``)."""
        given = dict(item.partition("=")[::2] for item in self.asked.use)
        return self.grid.model_copy(update={name: given[name] for name in (BASE, JUDGE) if name in given})

    @property
    def command(self) -> str:
        """The command that makes the measured rows, and what else is missing of what it names.

        ``bench`` may have been called for one part after another. Of the last call's ``--only`` stand here those that
        hold for every measured row. Its ``--prompts`` and ``--use`` do: other ones make other cells.
        """
        changed = [part for override in self.overrides for part in ("--set", override)]
        words = ["metaunlearn", "bench", self.bench, *changed, *replace(self.asked, only=self.only).words()]
        return f"{shlex.join(words)} --out DIR"

    @property
    def only(self) -> tuple[str, ...]:
        """Of the last call's ``--only`` those whose key holds for every measured row; none of ``cell``."""
        wanted: dict[str, set[str]] = {}
        for item in self.asked.only:
            key, _, value = item.partition("=")
            wanted.setdefault(key, set()).add(value)
        labels = [found.row.labels() for found in self.rows]
        held = {key for key, values in wanted.items() if all(str(row.get(key)) in values for row in labels)}
        return tuple(item for item in self.asked.only if item.partition("=")[0] in held)

    def to_dict(self) -> dict[str, Any]:
        """``results.json``. Nothing in it depends on when or in what order the cells were made."""
        return {
            "bench": self.bench,
            "description": self.description,
            "overrides": list(self.overrides),
            "asked": asdict(self.asked),
            "grid": self.grid.model_dump(mode="json"),
            "rows_in_all": self.rows_in_all,
            "rows": [{**found.row.labels(), "cell": found.cell, "scores": found.scores} for found in self.rows],
            "protocols": self.protocols,
            "versions": self.versions,
        }


def found_in(record: Mapping[str, Any]) -> Found:
    """What :meth:`Found.to_dict` gave; KeyError, TypeError or UserError when ``record`` cannot be that."""
    rows = []
    for row in record["rows"]:
        labels = {name: value for name, value in row.items() if name not in ("cell", "scores")}
        rows.append(Measured(State(**labels), row["cell"], row["scores"]))
    return Found(
        bench=record["bench"],
        description=record["description"],
        overrides=tuple(record.get("overrides", ())),
        asked=_asked(record.get("asked", {})),
        grid=resolve(Grid, record["grid"]),
        rows_in_all=record["rows_in_all"],
        rows=rows,
        protocols=record["protocols"],
        versions=record["versions"],
    )


def _asked(record: Mapping[str, Any]) -> Asked:
    said: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    return Asked(**said)


@dataclass(frozen=True)
class Pooled:
    """One score over seeds."""

    value: float
    low: float
    high: float
    """Of a percentage, and of what one seed alone has, the 95 % interval; of any other score the range over seeds."""
    n: int
    """Pictures in all."""
    by_seed: dict[int, float]


class Results:
    """Reads the scores of whole cells, each once."""

    def __init__(
        self,
        recipe: BenchRecipe,
        plan: Plan,
        store: Store,
        overrides: Sequence[str] = (),
        asked: Asked | None = None,
    ) -> None:
        self.recipe, self.plan, self.store = recipe, plan, store
        self.overrides, self.asked = tuple(overrides), asked or Asked()
        self.protocols: dict[str, dict[str, Any]] = {}
        """By digest."""
        self._read: dict[str, dict[str, dict[str, Any]]] = {}

    def found(self) -> Found:
        """What is whole now."""
        rows = [
            Measured(row, row.cell.name, self._scores(row))
            for row in self.plan.rows
            if self.store.complete(row.cell.name)
        ]
        return Found(
            bench=self.recipe.name,
            description=self.recipe.description,
            overrides=self.overrides,
            asked=self.asked,
            grid=self.recipe.grid,
            rows_in_all=len(self.plan.rows),
            rows=rows,
            protocols=dict(sorted(self.protocols.items())),
            versions=versions(),
        )

    def _scores(self, row: Row) -> dict[str, dict[str, Any]]:
        name = row.cell.name
        if name not in self._read:
            found = read_json(self.store.folder(name) / SCORES_FILE)["scores"]
            self._read[name] = {key: self._short(key, score) for key, score in found.items()}
        return self._read[name]

    def _short(self, key: str, score: dict[str, Any]) -> dict[str, Any]:
        protocol = json.dumps(comparable(score["protocol"]), sort_keys=True)
        digest = hashlib.sha256(protocol.encode()).hexdigest()[:DIGEST_DIGITS]
        self.protocols.setdefault(digest, score["protocol"])
        share = score["protocol"].get("interval", "Wilson" if key in PERCENTAGES else "") == "Wilson"
        hits = {"hits": round(score["value"] * score["n"] / 100)} if share else {}
        each = _each(score) if key == "concept" else {}
        return {name: score[name] for name in ("value", "low", "high", "n")} | hits | each | {"protocol": digest}


def _each(score: Mapping[str, Any]) -> dict[str, str]:
    """Whether the judge saw the concept in each picture, where the cell says what it saw."""
    said = score["protocol"].get("concept")
    seen = "".join(str(int(row["saw"] == said)) for row in score["raw"] if "saw" in row)
    return {EACH: seen} if said and len(seen) == score["n"] else {}


def other_scores(rows: Sequence[Measured]) -> list[str]:
    """Scores beside ``SCORES`` that ``rows`` have, in the order in which they come."""
    return list(dict.fromkeys(name for measured in rows for name in measured.scores if name not in SCORES))


def pooled(rows: Sequence[Measured], score: str) -> Pooled | None:
    """``score`` over ``rows``, which differ in their seed only; None when none of them has it.

    Rows of one cell show the same pictures, which count once.
    """
    those = [measured for measured in rows if score in measured.scores]
    found = {measured.row.seed: measured.scores[score] for measured in those}
    if not found:
        return None
    if len({one["protocol"] for one in found.values()}) > 1:
        raise UserError(
            f"the score {score!r} was measured by different protocols on the seeds {', '.join(map(str, found))}, and "
            "would make no mean: a protocol holds what is the same for all pictures. Correct the metric."
        )
    by_seed = {seed: one["value"] for seed, one in sorted(found.items())}
    cells = list({measured.cell: measured.scores[score] for measured in those}.values())
    n = sum(one["n"] for one in cells)
    if all("hits" in one for one in cells):
        interval = wilson(sum(one["hits"] for one in cells), n)
        return Pooled(interval.value, interval.low, interval.high, n, by_seed)
    if len(cells) == 1:
        return Pooled(cells[0]["value"], cells[0]["low"], cells[0]["high"], n, by_seed)
    values = list(by_seed.values())
    return Pooled(mean(values), min(values), max(values), n, by_seed)
