"""From a grid to its rows, each the measurement of one state, and to the cells that they need."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from metaunlearn.attacks.registry import configure as configure_attack
from metaunlearn.bench import sources
from metaunlearn.bench.cells import KEY_DIGITS, Cell, make_cell
from metaunlearn.bench.recipe import Grid, GridAttack, GridConcept, GridVariant, ModelName, as_overrides
from metaunlearn.config import Counts
from metaunlearn.erasure.interface import OptimisedMethod
from metaunlearn.erasure.prepare import PICTURE_SETTINGS
from metaunlearn.erasure.registry import Configured, configure
from metaunlearn.recipe import read_recipe

META_ONLY = ("gamma2", "zeta", "inner_", "meta_", "direct_term", "common_noise")
"""Beginnings of settings that a run without the meta objective does not read."""
NO_INFLUENCE = ("checkpoint_every", "diagnostics_", "inner_store")
"""Beginnings of settings under which the result is the same, bit for bit."""
BEFORE = "before"


@dataclass(frozen=True, kw_only=True)
class State:
    """One state of one model: where it stands in the tables."""

    concept: str
    seed: int
    method: str
    """Empty for the original model."""
    variant: str
    model: ModelName
    attack: str
    """``before`` when there was none."""
    step: int

    def labels(self) -> dict[str, Any]:
        """What ``--only`` can ask for."""
        names = ("concept", "seed", "method", "variant", "model", "attack", "step")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Row(State):
    """A state, and the cell with its scores."""

    cell: Cell = field(hash=False)


@dataclass(frozen=True)
class Plan:
    """All rows, in the order in which they are made: seed 0 of everything first; and all cells by name."""

    rows: list[Row]
    cells: dict[str, Cell]

    def behind(self, rows: Sequence[Row]) -> list[Cell]:
        """The cells of ``rows`` and those that they need, each once, after those that it needs itself."""
        found: dict[str, Cell] = {}

        def add(cell: Cell) -> None:
            for name in cell.needs.values():
                if name not in found:
                    add(self.cells[name])
            found.setdefault(cell.name, cell)

        for row in rows:
            add(row.cell)
        return list(found.values())


def make_plan(grid: Grid, overrides: Sequence[str] = ()) -> Plan:
    """All work of ``grid``; settings that cannot be are a UserError here. ``overrides`` go on top of every erasing."""
    planner = _Planner(grid, overrides)
    return Plan([planner.row(state) for state in states(grid)], planner.cells)


def states(grid: Grid) -> Iterator[State]:
    """All states of ``grid``, in the order of :class:`Plan`."""
    for seed in sorted({seed for concept in grid.concepts for seed in concept.seeds}):
        for concept in (concept for concept in grid.concepts if seed in concept.seeds):
            place: dict[str, Any] = {"concept": concept.name, "seed": seed}
            if "original" in grid.models:
                yield State(**place, method="", variant="", model="original", attack=BEFORE, step=0)
            for variant, method in product(grid.variants, grid.methods):
                for model in variant.models or grid.models:
                    if model != "original":
                        of: dict[str, Any] = {**place, "method": method, "variant": variant.name, "model": model}
                        yield State(**of, attack=BEFORE, step=0)
                        for attack in grid.attacks:
                            for step in attack.steps or concept.steps:
                                yield State(**of, attack=attack.name, step=step)


@dataclass
class _Planner:
    grid: Grid
    overrides: Sequence[str]
    cells: dict[str, Cell] = field(default_factory=dict)
    made: dict[tuple[Any, ...], Cell] = field(default_factory=dict)
    """Erased models and attacks, by where they stand."""

    def cell(self, kind: str, **facts: Any) -> Cell:
        made = make_cell(kind, **facts)
        return self.cells.setdefault(made.name, made)

    def row(self, state: State) -> Row:
        """``state`` with its cell and those that this needs."""
        measure = self.grid.measure
        concept = next(concept for concept in self.grid.concepts if concept.name == state.concept)
        if state.model == "original":
            return self._row(state, measure.before, {}, {})
        names = ("concept", "seed", "method", "variant", "model")
        place = {name: getattr(state, name) for name in names}
        erased = self._once(
            tuple(place.values()),
            lambda: self._erase(
                concept,
                state.seed,
                state.method,
                next(variant for variant in self.grid.variants if variant.name == state.variant),
                state.model,
                place,
            ),
        )
        if state.attack == BEFORE:
            return self._row(state, measure.before, {"erase": erased}, {})
        attack = next(attack for attack in self.grid.attacks if attack.name == state.attack)
        attacked = self._once(
            (*place.values(), attack.name), lambda: self._attack(concept, state.seed, attack, erased, place)
        )
        counts = measure.last if state.step == (attack.steps or concept.steps)[-1] else measure.between
        return self._row(state, counts, {"erase": erased, "attack": attacked}, {"step": state.step})

    def _once(self, place: tuple[Any, ...], make: Callable[[], Cell]) -> Cell:
        if place not in self.made:
            self.made[place] = make()
        return self.made[place]

    def _erase(
        self,
        concept: GridConcept,
        seed: int,
        method: str,
        variant: GridVariant,
        model: ModelName,
        place: Mapping[str, Any],
    ) -> Cell:
        meta = model == "meta-unlearn"
        said = [*as_overrides({**self.grid.set, **concept.set, **variant.set}), *self.overrides]
        chosen = _configured(method, self.grid.recipe, tuple(said))
        trains = meta or isinstance(chosen.method, OptimisedMethod)
        needs = {"pictures": self._pictures(concept, seed, chosen, place)} if trains else {}
        spec = {
            "base": base_hash(self.grid.base), "concept": concept.name, "method": chosen.name,
            "method_settings": chosen.method_settings, "settings": settings_that_count(chosen, meta=meta),
            "meta": meta, "seed": seed, **_code_elsewhere(chosen),
        }  # fmt: skip
        call = {
            "base": self.grid.base, "concept": concept.name, "method": method, "meta": meta,
            "recipe": self.grid.recipe, "overrides": said, "seed": seed, "paths": paths_code(),
        }  # fmt: skip
        size = chosen.settings.steps if trains else 1
        return self.cell("erase", spec=spec, call=call, labels=place, size=size, needs=needs)

    def _pictures(self, concept: GridConcept, seed: int, chosen: Configured, place: Mapping[str, Any]) -> Cell:
        pictures = {name: getattr(chosen.settings, name) for name in PICTURE_SETTINGS}
        facts = {"concept": concept.name, "seed": seed, "settings": pictures}
        spec = {"base": base_hash(self.grid.base), **facts}
        call = {"base": self.grid.base, **facts}
        labels = {"concept": place["concept"], "seed": seed}
        size = chosen.settings.forget_images + 2 * chosen.settings.retain_images
        return self.cell("pictures", spec=spec, call=call, labels=labels, size=size)

    def _attack(
        self, concept: GridConcept, seed: int, attack: GridAttack, erased: Cell, place: Mapping[str, Any]
    ) -> Cell:
        labels = {"concept": concept.name, "seed": seed, "attack": attack.name}
        needs = {"erase": erased, "data": self._data(concept, seed, attack.data, attack.pictures, labels)}
        more = {}
        if attack.warm_up is not None:
            step = attack.warm_up.steps
            first = {**attack.warm_up.model_dump(), "name": f"{attack.name}, warming up", "steps": [step]}
            needs["warm"] = self._attack(concept, seed, GridAttack.model_validate(first), erased, place)
            more = {"warm_step": step}
        said = as_overrides({**concept.attack, **attack.set})
        settings = configure_attack(attack.kind, read_recipe(self.grid.recipe), said).kind.model_dump(mode="json")
        steps = list(attack.steps or concept.steps)
        spec = {"kind": attack.kind, "settings": _without(settings, NO_INFLUENCE), "steps": steps, "seed": seed}
        call = {"kind": attack.kind, "steps": steps, "recipe": self.grid.recipe, "overrides": said, "seed": seed}
        return self.cell(
            "attack", spec=spec | more, call=call | more, labels={**place, **labels}, size=steps[-1], needs=needs
        )

    def _data(self, concept: GridConcept, seed: int, dataset: str, pictures: int, labels: Mapping[str, Any]) -> Cell:
        facts = {"dataset": dataset, "concept": concept.name, "pictures": pictures, "seed": seed}
        return self.cell("data", spec={**facts, "art": art_hash()}, call=facts, labels=labels, size=pictures)

    def _row(self, state: State, counts: Counts, needs: Mapping[str, Cell], more: Mapping[str, Any]) -> Row:
        facts = {
            "concept": state.concept, "seed": state.seed, "counts": counts.model_dump(),
            "shown": self.grid.measure.shown, **more,
        }  # fmt: skip
        cell = self.cell(
            "measure",
            spec={**facts, "base": base_hash(self.grid.base), "art": art_hash(), "judge": judge_hash()},
            call={**facts, "base": self.grid.base},
            labels=state.labels(),
            size=sum(counts.model_dump().values()),
            needs=needs,
        )
        return Row(**state.labels(), cell=cell)


@functools.lru_cache(maxsize=256)
def _configured(method: str, recipe: str, overrides: tuple[str, ...]) -> Configured:
    return configure(method, read_recipe(recipe), overrides)


def settings_that_count(chosen: Configured, *, meta: bool) -> dict[str, Any]:
    """Those settings of an erasing run that its result depends on."""
    if not meta and not isinstance(chosen.method, OptimisedMethod):
        return {}  # A closed-form edit takes no step.
    # A mixture of attackers stays in a plain run's: drawing one of it moves the run's other draws, too.
    return _without(chosen.settings.model_dump(mode="json"), NO_INFLUENCE if meta else NO_INFLUENCE + META_ONLY)


def _without(settings: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith(beginnings)}


def _code_elsewhere(chosen: Configured) -> dict[str, str]:
    """The hash of the method's own file when another package brings it."""
    kind = type(chosen.method)
    file = None if kind.__module__.startswith(f"{sources.PACKAGE}.") else inspect.getsourcefile(kind)
    return {} if file is None else {"method_code": sources.files_hash(Path(file))}


@functools.cache
def paths_code() -> str:
    """Of the code that samples the frozen teacher's paths: they are shared by all that it made."""
    return sources.code_hash("metaunlearn.erasure.trajectories")[:KEY_DIGITS]


@functools.cache
def base_hash(base: str) -> str:
    """Of the base model's files."""
    assert base == "canvas", base  # read_bench() lets nothing else pass.
    from metaunlearn.canvas import weights_folder

    return sources.files_hash(weights_folder() / "pipeline")


@functools.cache
def judge_hash() -> str:
    """Of Canvas's judge."""
    from metaunlearn.canvas import weights_folder

    return sources.files_hash(weights_folder() / "judge")


@functools.cache
def art_hash() -> str:
    """Of the emoji from which Canvas's real pictures are drawn."""
    return sources.files_hash(sources.ROOT / "canvas" / "art")
