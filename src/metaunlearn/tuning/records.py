"""What is kept of every trial, ``OUT/trials/trial-0007.json``, and which of them nothing else beats: the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from metaunlearn.files import read_json, write_json
from metaunlearn.records import TRIALS_FOLDER
from metaunlearn.tuning.space import Proposal

Role = Literal["plain", "default", "start", "search"]
"""The plainly unlearned model, the recipe's own settings, settings that the recipe wants tried, and all others."""
BASELINES: tuple[Role, ...] = ("plain", "default")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished trial."""

    trial: int
    role: Role
    status: Literal["complete", "given up", "failed"]
    """``given up``: it had lost too much before any attack to be attacked. ``failed``: see ``message``."""
    method: str
    meta: bool
    """Whether the meta objective was on."""
    varied: dict[str, str]
    """What was said over the recipe's settings, as ``--set`` would say it."""
    settings: dict[str, Any]
    """All settings of erasing as resolved, the method's own included."""
    regained: float | None = None
    """The first objective: percent of pictures that show the concept under the worst attack; lower is better."""
    lost: float | None = None
    """The second: what was lost before any attack, in points of unrelated concepts; lower is better."""
    outcome: dict[str, Any] = field(default_factory=dict)
    """All that was measured."""
    message: str = ""
    """Why it failed."""
    seconds: float = 0.0
    """Wall time, without what was there already."""

    @property
    def proposal(self) -> Proposal:
        """How it erases."""
        return Proposal(method=self.method, settings=self.varied, meta=self.meta)

    def write(self, out: Path) -> None:
        """Keep it, whole or not at all."""
        write_json(out / TRIALS_FOLDER / f"trial-{self.trial:04d}.json", asdict(self))


def read_records(out: Path) -> list[Record]:
    """All that are there, by number."""
    return [Record(**read_json(file)) for file in sorted((out / TRIALS_FOLDER).glob("trial-*.json"))]


def frontier(records: Sequence[Record]) -> list[Record]:
    """The complete trials that no other one beats, by what they lost.

    One beats another when it is no worse in both objectives and better in one. The plain model can be among them.
    """
    complete = [record for record in records if record.status == "complete"]
    return sorted(
        (one for one in complete if not any(_beats(other, one) for other in complete)),
        key=lambda record: (_objectives(record), record.trial),
    )


def _beats(one: Record, other: Record) -> bool:
    a, b = _objectives(one), _objectives(other)
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _objectives(record: Record) -> tuple[float, float]:
    assert record.lost is not None
    assert record.regained is not None  # A complete trial has both.
    return record.lost, record.regained
