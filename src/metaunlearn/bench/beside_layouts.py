"""Which rows and columns each published table has when it is set beside a grid, and what is to be said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.counterparts import (
    ASR,
    CLIP_SCORE,
    FID,
    NSFW,
    NUDITY,
    UNSAFE,
    Counterpart,
    Quantity,
    attack_named,
    both,
    lines_for,
    matched,
    same_method,
    same_model,
    score_for,
)
from metaunlearn.bench.lines import Line
from metaunlearn.bench.recipe import Grid, GridConcept, ModelName, steps_of
from metaunlearn.bench.state import BEFORE

Place = tuple[str, int]
"""(attack, step) of a state."""
Published = Sequence[Mapping[str, str]]
"""Rows of a published table."""
START: Place = (BEFORE, 0)
MODELS: dict[str, ModelName] = {"original": "original", "unlearn": "unlearn", "meta-unlearn": "meta-unlearn"}
"""What the published tables call ``variant``."""
NOT_SAID = (
    "After which attack and how many steps the paper's figures are, it does not say; ours are after the last step of "
    "each malicious attack."
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of each row."""

    head: str
    quantity: Quantity
    ours: Counterpart


class Here(NamedTuple):
    """Where the grid has what a figure of the paper is about."""

    place: Place
    unlike: bool = False
    """Whether it is another kind of attack."""


class Figure(NamedTuple):
    """One figure of the paper, and where ours is."""

    place: Place
    papers: str
    """As printed."""
    unlike: bool = False
    """Whether ours is of another method or another kind of attack."""


@dataclass(frozen=True, kw_only=True)
class RowBeside:
    """One of the paper's rows, and the grid's line for it."""

    names: Sequence[str]
    line: Line
    figures: Sequence[Figure | None]
    """One for each column; None where the paper has none."""


@dataclass(kw_only=True)
class Layout:
    """A published table while it is set beside one concept of a grid."""

    grid: Grid
    concept: GridConcept
    heads: list[str] = field(default_factory=list)
    """Of the columns that say what a row is about."""
    columns: list[Column] = field(default_factory=list)
    rows: list[RowBeside] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for above the table."""
    stand_for: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """By our numbers of steps and those of the paper for which they stand: of what."""
    left_out: list[str] = field(default_factory=list)
    """What of the published table has nothing to stand beside it."""

    @property
    def varied(self) -> bool:
        """Whether variants have names."""
        return any(variant.name for variant in self.grid.variants)

    def said(self) -> list[str]:
        """How methods and attacks differ, in sentences."""
        lengths = [
            f"{', '.join(names)}: {ours} steps stand for the paper's {papers}, in this order."
            for (ours, papers), names in self.stand_for.items()
        ]
        return [*self.notes, *lengths]

    def add_note(self, sentence: str) -> None:
        """Say ``sentence`` above the table, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def leave_out(self, what: str) -> None:
        """Name ``what`` below the table, once."""
        if what not in self.left_out:
            self.left_out.append(what)

    def add_column(self, quantity: Quantity, head: str = "") -> bool:
        """A column for ``quantity``; where the grid has no score for it, it is left out."""
        ours = score_for(self.grid, quantity)
        if ours is None:
            self.leave_out(f"column {head or quantity.title}")
            return False
        head = head or f"{both(ours.title, quantity.title)}{quantity.unit}"
        self.columns.append(Column(head=head, quantity=quantity, ours=ours))
        return True

    def add_row(self, line: Line, *more: str, figures: Sequence[Figure | None], papers_method: str = "") -> None:
        """A row whose first words are those of ``line`` and ``more``; another method than the paper's is said."""
        other = bool(papers_method and line.method) and not same_method(line.method, papers_method)
        if other:
            self.add_note(f"Method: {line.method}; the paper's: {papers_method}.")
            figures = [figure and figure._replace(unlike=True) for figure in figures]
        method = f"{line.method} (paper: {papers_method})" if other else line.method or "(none)"
        names = [method, *([line.variant] if "variant" in self.heads else []), line.model, *more]
        self.rows.append(RowBeside(names=names, line=line, figures=figures))

    def lines(self, papers: str, model: ModelName, *, stand_in: bool = False) -> list[Line]:
        """As :func:`lines_for`; without any the row is left out."""
        found = lines_for(self.grid, papers, model, stand_in=stand_in)
        if not found:
            self.leave_out(f"row {papers}, {model}")
        return found

    def matched(self, what: str, ours: Sequence[int], papers: Sequence[int]) -> dict[int, int]:
        """By the paper's number of steps, ours; what differs is noted, what is missing left out."""
        found = matched(ours, papers, by_number=same_model(self.grid))
        for steps in papers:
            if steps not in found:
                self.leave_out(f"{what} {steps}")
        if any(steps != here for steps, here in found.items()):
            self.stand_for.setdefault((_listed(found.values()), _listed(found)), []).append(what)
        return found

    def checkpoints(self, published: Published) -> dict[tuple[str, int], Here]:
        """By data set and number of steps in the paper, where the grid has it."""
        lengths: dict[str, list[int]] = {}
        for row in published:
            lengths.setdefault(row["finetune_data"], []).append(int(row["finetune_steps"]))
        found: dict[tuple[str, int], Here] = {}
        for name, papers in lengths.items():
            if name == "none":
                found[name, 0] = Here(START)
                continue
            attack = attack_named(self.grid, name)
            if attack is None:
                self.leave_out(f"attack {name}")
                continue
            otherwise = _otherwise(attack)
            if otherwise:
                self.add_note(f"{name} is {otherwise} here, finetuning alone in the paper.")
            for steps, here in self.matched(name, steps_of(attack, self.concept), sorted({*papers})).items():
                found[name, steps] = Here((attack.name, here), bool(otherwise))
        return found

    def last_steps(self) -> dict[str, Here]:
        """By name, each malicious attack's last checkpoint, for figures of which the paper does not say more."""
        self.add_note(NOT_SAID)
        malicious = [attack for attack in self.grid.attacks if attack.malicious]
        return {
            attack.name: Here((attack.name, steps_of(attack, self.concept)[-1]), bool(_otherwise(attack)))
            for attack in malicious
        }


def _table1(layout: Layout, published: Published) -> None:
    """A row for each model and checkpoint."""
    layout.heads = [*_heads(layout), "after"]
    layout.add_column(NUDITY)
    for row, place, unlike, after in _at_checkpoints(layout, published):
        for line in layout.lines(row["method"], MODELS[row["variant"]]):
            layout.add_row(line, after, figures=[Figure(place, row["nudity_score_percent"], unlike)])


def _table2(layout: Layout, published: Published) -> None:
    """FID and CLIP score before any attack."""
    layout.heads = _heads(layout)
    keys = [key for key, quantity in (("fid", FID), ("clip_score", CLIP_SCORE)) if layout.add_column(quantity)]
    for row in published:
        for line in layout.lines(row["method"], MODELS[row["variant"]]):
            layout.add_row(line, figures=[Figure(START, row[key]) for key in keys])


def _table3(layout: Layout, published: Published) -> None:
    """Unsafe and NSFW score by ESD-f-3, a row for each model and checkpoint."""
    layout.heads = [*_heads(layout), "after"]
    columns = (("unsafe_score_percent", UNSAFE), ("nsfw_score", NSFW))
    keys = [key for key, quantity in columns if layout.add_column(quantity)]
    for row, place, unlike, after in _at_checkpoints(layout, published):
        for line in layout.lines("ESD-f-3", MODELS[row["variant"]], stand_in=True):
            figures = [Figure(place, row[key], unlike) for key in keys]
            layout.add_row(line, after, figures=figures, papers_method="ESD-f-3")


def _table4(layout: Layout, published: Published) -> None:
    """gamma1:gamma2 at two lengths of ESD-u-1's training, which are those of variants called ``1:1, 300 steps``."""
    layout.heads = ["method", "model", "gamma1:gamma2", "training steps"]
    variants = {
        (match[1], int(match[2])): variant.name
        for variant in layout.grid.variants
        if (match := re.fullmatch(r"(\d+:\d+), (\d+) steps", variant.name))
    }
    ours, papers = {length for _, length in variants}, {int(row["training_steps"]) for row in published}
    lengths = layout.matched("training for", sorted(ours), sorted(papers))
    keyed = [(Here(START), "before_ft")] if layout.add_column(NUDITY, BEFORE) else []
    keyed += [(here, "after_ft") for here in _after(layout)]
    for row in published:
        ratio, length = row["gamma1_to_gamma2"], int(row["training_steps"])
        variant = variants.get((ratio, lengths.get(length, -1)))
        figures = [Figure(here.place, row[key], here.unlike) for here, key in keyed]
        found = _of_variant(layout.lines("ESD-u-1", "meta-unlearn", stand_in=True), variant)
        if not found and length in lengths:
            layout.leave_out(f"row {ratio}, {length} steps")
        for line in found:
            steps = both(str(lengths[length]), str(length))
            layout.add_row(line, ratio, steps, figures=figures, papers_method="ESD-u-1")


def _table5(layout: Layout, published: Published) -> None:
    """Inner steps M of ESD-u-3, which are those of variants called ``M = 1``."""
    layout.heads = ["method", "model", "M"]
    columns = (("fid_before_ft", FID), ("clip_score_before_ft", CLIP_SCORE))
    keyed = [(Here(START), key) for key, quantity in columns if layout.add_column(quantity)]
    keyed += [(here, "nudity_score_after_ft") for here in _after(layout)]
    for row in published:
        m = row["inner_steps_M"]
        figures = [Figure(here.place, row[key], here.unlike) for here, key in keyed]
        found = _of_variant(layout.lines("ESD-u-3", "meta-unlearn", stand_in=True), f"M = {m}")
        if not found:
            layout.leave_out(f"row M = {m}")
        for line in found:
            layout.add_row(line, m, figures=figures, papers_method="ESD-u-3")


def _appendix_f(layout: Layout, published: Published) -> None:
    """The optimiser of ESD-u-3's attacker, which is the name of an attack."""
    layout.heads = [*_heads(layout), "optimiser", "steps"]
    last = {name.casefold(): here for name, here in layout.last_steps().items()}
    if not layout.add_column(NUDITY, "after the attack"):
        return
    for row in published:
        optimiser = row["attack_optimizer"]
        here = last.get(optimiser.casefold())
        if here is None:
            layout.leave_out(f"row {optimiser}")
            continue
        figure = Figure(here.place, row["nudity_score_after_ft"], here.unlike)
        for line in layout.lines("ESD-u-3", "meta-unlearn", stand_in=True):
            layout.add_row(line, optimiser, str(here.place[1]), figures=[figure], papers_method="ESD-u-3")


def _unlearndiffatk(layout: Layout, published: Published) -> None:
    """Success of attacks on prompts."""
    layout.heads = _heads(layout)
    attacks = [attack for attack in layout.grid.attacks if attack.on_prompts]
    for attack in attacks:
        layout.add_column(ASR, f"{both(attack.name, 'UnlearnDiffAtk')}, success rate, %")
    for row in published:
        for line in layout.lines(row["method"], MODELS[row["variant"]]):
            layout.add_row(line, figures=[Figure((attack.name, 0), row["asr_percent"]) for attack in attacks])


PUBLISHED: dict[str, tuple[str, Callable[[Layout, Published], None]]] = {
    "table1_nudity_score": ("Table 1", _table1),
    "table2_quality": ("Table 2", _table2),
    "table3_nsfw_esd_f_3": ("Table 3", _table3),
    "table4_gamma_ratio_esd_u_1": ("Table 4", _table4),
    "table5_inner_steps_esd_u_3": ("Table 5", _table5),
    "appendix_f_attack_optimizers_esd_u_3": ("Appendix F", _appendix_f),
    "unlearndiffatk_asr": ("UnlearnDiffAtk", _unlearndiffatk),
}
"""By name, a title and what lays it out."""


def _at_checkpoints(layout: Layout, published: Published) -> Iterator[tuple[Mapping[str, str], Place, bool, str]]:
    """The paper's rows that the grid has: each with where ours is, whether that is unlike, and the words for it."""
    places = layout.checkpoints(published)
    for row in published:
        name, papers = row["finetune_data"], int(row["finetune_steps"])
        if (name, papers) in places:
            place, unlike = places[name, papers]
            after = BEFORE if place == START else f"{name} {both(f'{place[1]}', str(papers))}"
            yield row, place, unlike, after


def _heads(layout: Layout) -> list[str]:
    return ["method", "variant", "model"] if layout.varied else ["method", "model"]


def _after(layout: Layout) -> list[Here]:
    """The last checkpoint of each malicious attack, with a column."""
    last = layout.last_steps()
    if not last:
        layout.leave_out("column after FT")
    return [
        here
        for name, here in last.items()
        if layout.add_column(NUDITY, f"after {name} {here.place[1]} (paper: after FT)")
    ]


def _of_variant(lines: Iterable[Line], variant: str | None) -> list[Line]:
    return [line for line in lines if line.variant == variant]


def _otherwise(attack: GridAttack) -> str:
    """What an attack is where it is more than finetuning, or other; empty where it is not."""
    if attack.warm_up is not None:
        return f"{attack.kind} after {attack.warm_up.steps} steps on {attack.warm_up.data}"
    return "" if attack.kind == "finetune" else attack.kind


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
