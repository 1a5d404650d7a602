"""From a grid to its rows, each the measurement of one state, and to the cells that they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from metaunlearn.attacks.brought import GROUP as ATTACKS
from metaunlearn.attacks.registry import folder_name, kind_of, leaves_pictures
from metaunlearn.attacks.registry import needs as needs_of
from metaunlearn.bench import sources
from metaunlearn.bench.attacks import DONORS, GridAttack
from metaunlearn.bench.cells import KEY_DIGITS, Cell, kind_of_device, make_cell
from metaunlearn.bench.identity import art_hash
from metaunlearn.bench.inputs import Inputs, recipe_file
from metaunlearn.bench.recipe import (
    CANVAS,
    Grid,
    GridConcept,
    GridVariant,
    ModelName,
    Place,
    levels_of,
)
from metaunlearn.bench.resolved import NO_INFLUENCE, of_attack, of_erasing, packages_behind, without
from metaunlearn.bench.scoring import Scoring, Work
from metaunlearn.bench.state import BEFORE, State
from metaunlearn.data.concepts import NOTHING
from metaunlearn.erasure.interface import takes_steps
from metaunlearn.erasure.prepare import PICTURE_SETTINGS
from metaunlearn.erasure.registry import Configured, check_objective, configure, has_defence, heard_by
from metaunlearn.errors import UserError
from metaunlearn.overrides import as_overrides
from metaunlearn.recipe import read_recipe


@dataclass(frozen=True, kw_only=True)
class Row(State):
    """A state, and the cell with its scores."""

    cell: Cell = field(hash=False)


@dataclass(frozen=True)
class Plan:
    """All rows, in the order in which they are made: seed 0 of everything first; and all cells by name."""

    rows: list[Row]
    cells: dict[str, Cell]

    def with_needs(self, cells: Iterable[Cell], *, skip: Callable[[str], bool] = lambda name: False) -> list[Cell]:
        """``cells`` and those that they need, each once, after those that it needs itself.

        Without those whose name ``skip`` is true of, and without what only those need.
        """
        found: dict[str, Cell] = {}

        def add(cell: Cell) -> None:
            if cell.name in found or skip(cell.name):
                return
            for name in cell.needs.values():
                add(self.cells[name])
            found[cell.name] = cell

        for cell in cells:
            add(cell)
        return list(found.values())


def missing_of(cells: Iterable[Cell]) -> list[str]:
    """What ``cells`` need that is not here, each with what to do about it."""
    return list(dict.fromkeys(text for cell in cells for text in cell.missing))


def make_plan(grid: Grid, overrides: Sequence[str] = (), inputs: Inputs | None = None, *, device: str = "cpu") -> Plan:
    """All work of ``grid`` on ``device``; settings that cannot be are a UserError here. ``overrides`` go on top of
    every erasing.

    Cells that need something that is neither in ``inputs`` nor here say so in ``missing``.
    """
    planner = _Planner(grid, overrides, inputs or Inputs(grid), device)
    return Plan([planner.row(state) for state in states(grid)], planner.cells)


def states(grid: Grid) -> Iterator[State]:
    """All states of ``grid`` of which something is measured, in the order of :class:`Plan`."""
    return (state for state in _all_states(grid) if state.attack in _on_prompts(grid) or _is_measured(grid, state))


def _all_states(grid: Grid) -> Iterator[State]:
    for seed in sorted({seed for concept in grid.concepts for seed in concept.seeds}):
        for concept in (concept for concept in grid.concepts if seed in concept.seeds):
            place: dict[str, Any] = {"concept": concept.name, "seed": seed}
            if "original" in grid.models:
                yield State(**place, method="", variant="", model="original", attack=BEFORE, step=0)
            for variant, method in product(grid.variants, grid.methods):
                for model in variant.models or grid.models:
                    if model != "original" and not (model == "meta-unlearn" and has_defence(method)):
                        of: dict[str, Any] = {**place, "method": method, "variant": variant.name, "model": model}
                        yield State(**of, attack=BEFORE, step=0)
                        for attack in grid.attacks:
                            for step in levels_of(attack, concept):
                                yield State(**of, attack=attack.name, step=step)


def _on_prompts(grid: Grid) -> set[str]:
    return {attack.name for attack in grid.attacks if attack.on_prompts}


def _is_measured(grid: Grid, state: State) -> bool:
    return grid.measure is not None or any(prompts.asks(place_of(grid, state)) for prompts in grid.prompts)


def place_of(grid: Grid, state: State) -> Place:
    """Where ``state`` stands in its attack."""
    if state.attack == BEFORE:
        return "before"
    concept = next(concept for concept in grid.concepts if concept.name == state.concept)
    attack = next(attack for attack in grid.attacks if attack.name == state.attack)
    return "last" if state.step == levels_of(attack, concept)[-1] else "between"


@dataclass
class _Planner:
    grid: Grid
    overrides: Sequence[str]
    inputs: Inputs
    device: str
    cells: dict[str, Cell] = field(default_factory=dict)
    made: dict[tuple[Any, ...], Cell] = field(default_factory=dict)
    """Erased models and attacks, by where they stand."""

    def __post_init__(self) -> None:
        self.recipe = read_recipe(self.grid.recipe)
        self.recipe_name = recipe_file(self.grid.recipe)
        self.configured = functools.cache(lambda method, said: configure(method, self.recipe, said))
        self.base = self.inputs.base()
        self.scoring = Scoring(self.grid, self.inputs, self.base)

    def cell(self, kind: str, **facts: Any) -> Cell:
        made = make_cell(kind, **facts, device=self.device)
        return self.cells.setdefault(made.name, made)

    def row(self, state: State) -> Row:
        """``state`` with its cell and those that this needs."""
        concept = next(concept for concept in self.grid.concepts if concept.name == state.concept)
        place = place_of(self.grid, state)
        if state.model == "original":
            return self._row(state, self.scoring.work(state, concept, place), {})
        names = ("concept", "seed", "method", "variant", "model")
        where = {name: getattr(state, name) for name in names}
        erased = self._once(
            tuple(where.values()),
            lambda: self._erase(
                concept,
                state.seed,
                state.method,
                next(variant for variant in self.grid.variants if variant.name == state.variant),
                state.model,
                where,
            ),
        )
        if state.attack == BEFORE:
            return self._row(state, self.scoring.work(state, concept, place), {"erase": erased})
        attack = next(attack for attack in self.grid.attacks if attack.name == state.attack)
        chosen = self._settings_of(attack, concept)
        if attack.on_prompts:
            work = self.scoring.adversarial(state, concept, attack, chosen.settings, chosen.said)
            return self._row(state, work, {"erase": erased})
        attacked = self._once(
            (*where.values(), attack.name), lambda: self._attack(concept, state.seed, attack, erased, where)
        )
        at = folder_name(attack.kind, state.step)
        if leaves_pictures(attack.kind):
            return self._row(state, self.scoring.pictures(state, attack), {"attack": attacked}, at=at)
        work = self.scoring.work(state, concept, place, word=chosen.settings.get("token", ""))
        return self._row(state, work, {"erase": erased, "attack": attacked}, at=at)

    def _row(self, state: State, work: Work, needs: Mapping[str, Cell], **more: str) -> Row:
        return Row(**state.labels(), cell=self._work(state, work, needs, **more))

    def _work(self, state: State, work: Work, needs: Mapping[str, Cell], **more: str) -> Cell:
        """The cell of ``work`` on the state that is in ``needs``, and with ``more`` somewhere there."""
        if work.drawn:
            needs, more = {name: self._work(state, one, needs, **more) for name, one in work.drawn.items()}, {}
        labels = {**state.labels(), **({"prompts": work.named} if work.named else {})}
        return self.cell(
            work.kind, spec={**work.spec, **more}, call={**work.call, **more}, labels=labels, size=work.size,
            needs=needs, missing=work.missing, packages=work.packages,
        )  # fmt: skip

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
        of_method, of_model = concept.by_method.get(method, {}), self.grid.by_model.get(model, {})
        settings = {**self.grid.set, **concept.set, **of_method, **variant.set, **of_model}
        said = [*as_overrides(settings), *self.overrides]
        if has_defence(method):
            said = heard_by(method, self.recipe, said)
        chosen = self.configured(method, tuple(said))
        check_objective(chosen, meta=meta)
        trains = takes_steps(chosen.method, meta=meta)
        needs = {"pictures": self._pictures(concept, seed, chosen, place)} if trains else {}
        resolved = of_erasing(chosen, meta=meta, diagnosed=self.grid.diagnosed and trains)
        spec = {
            "base": self.base.identity, "concept": concept.erased, "method": chosen.name,
            "meta": meta, "seed": seed, **_kept(concept), **_packages(chosen.packages), **resolved,
        }  # fmt: skip
        call = {
            "base": self.base.value, "concept": concept.erased, "method": method, "meta": meta,
            "recipe": self.recipe_name, "overrides": said, "seed": seed, **_kept(concept),
            "paths": f"{paths_code()}-{kind_of_device(self.device)}",
        }  # fmt: skip
        size = sum(stage.settings.total_steps for stage in chosen.stages) if trains else 1
        return self.cell(
            "erase", spec=spec, call=call, labels=place, size=size, needs=needs, missing=self.base.missing,
            packages=packages_behind(resolved),
        )  # fmt: skip

    def _pictures(self, concept: GridConcept, seed: int, chosen: Configured, place: Mapping[str, Any]) -> Cell:
        if NOTHING in concept.retain and not concept.related:
            raise UserError(
                f"the recipe keeps nothing beside {concept.name!r} (retain = ['none']), and {chosen.name} needs "
                "pictures of what is retained; name something there (related or retain), or leave retain out."
            )
        pictures = {name: getattr(chosen.settings, name) for name in PICTURE_SETTINGS}
        facts = {"concept": concept.erased, "seed": seed, "settings": pictures, **_kept(concept)}
        spec = {"base": self.base.identity, **facts}
        call = {"base": self.base.value, **facts}
        labels = {"concept": place["concept"], "seed": seed}
        size = chosen.settings.forget_images + 2 * chosen.settings.retain_images
        return self.cell("pictures", spec=spec, call=call, labels=labels, size=size, missing=self.base.missing)

    def _attack(
        self, concept: GridConcept, seed: int, attack: GridAttack, erased: Cell, place: Mapping[str, Any]
    ) -> Cell:
        labels = {"concept": concept.name, "seed": seed, "attack": attack.name}
        needs = {"erase": erased}
        if attack.takes_data:
            needs["data"] = self._data(concept, seed, attack, labels)
        chosen = self._settings_of(attack, concept)
        levels = list(levels_of(attack, concept))
        facts = {"kind": attack.kind, "levels": levels, "seed": seed}
        spec = {**facts, "settings": without(chosen.settings, NO_INFLUENCE), **_packages(ATTACKS.code([attack.kind]))}
        call = {**facts, "recipe": self.recipe_name, "overrides": chosen.said}
        missing: tuple[str, ...] = ()
        if attack.warm_up is not None:
            step = attack.warm_up.steps
            first = GridAttack.model_validate(
                {**attack.warm_up.model_dump(), "name": f"{attack.name}, warming up", "steps": [step]}
            )
            needs["warm"] = self._attack(concept, seed, first, erased, place)
            spec["warm_at"] = call["warm_at"] = folder_name(first.kind, step)
        if attack.kind in DONORS:
            needs["donor"] = self._donor(concept, seed, attack, needs.pop("data"), labels)
            spec["settings"], call["overrides"] = {}, []
            call["donor_is"] = DONORS[attack.kind].setting, DONORS[attack.kind].left_in
        if "base" in needs_of(attack.kind):
            spec["base"], call["base"], missing = self.base.identity, self.base.value, self.base.missing
        size = levels[-1] if attack.trains else len(levels)
        return self.cell(
            "attack", spec=spec, call=call, labels={**place, **labels}, size=size, needs=needs, missing=missing
        )

    def _donor(
        self, concept: GridConcept, seed: int, attack: GridAttack, data: Cell, labels: Mapping[str, Any]
    ) -> Cell:
        """What is trained on the base model, a LoRA or all of it, to be brought into erased ones."""
        chosen = self._settings_of(attack, concept)
        donor = DONORS[attack.kind]
        facts = {"kind": donor.kind, "name": donor.left_in, "steps": attack.steps[0], "seed": seed}
        spec = {**facts, "base": self.base.identity, "settings": without(chosen.settings, NO_INFLUENCE)}
        call = {**facts, "base": self.base.value, "recipe": self.recipe_name, "overrides": chosen.said}
        return self.cell(
            "donor", spec=spec, call=call, labels=labels, size=attack.steps[0], needs={"data": data},
            missing=self.base.missing,
        )  # fmt: skip

    def _settings_of(self, attack: GridAttack, concept: GridConcept) -> _AttackSettings:
        """Of the concept those that the kind of attack has; of the attack all, which must be its own."""
        kind = DONORS[attack.kind].kind if attack.kind in DONORS else attack.kind
        # What a concept says is of finetuning weights: its learning rate would be none for words.
        of_weights = {} if attack.on_prompts else concept.attack
        theirs = {key: value for key, value in of_weights.items() if key in kind_of(kind).model_fields}
        said = as_overrides({**theirs, **attack.set})
        return _AttackSettings(of_attack(kind, self.recipe, said), said)

    def _data(self, concept: GridConcept, seed: int, attack: GridAttack, labels: Mapping[str, Any]) -> Cell:
        name = concept.data.get(attack.data, attack.data)
        if self.grid.base == CANVAS:
            facts = {"dataset": name, "concept": concept.name, "pictures": attack.pictures, "seed": seed}
            spec = {**facts, "art": art_hash()}
            return self.cell("data", spec=spec, call=facts, labels=labels, size=attack.pictures)
        found = self.inputs.data(name)
        call = {"source": found.value, "wanted": found.identity}
        spec = {"pictures": found.identity}
        return self.cell("given", spec=spec, call=call, labels={"data": name}, size=1, missing=found.missing)


def _packages(code: dict[str, list[str]]) -> dict[str, Any]:
    """What other packages bring to a cell, for its key; nothing where all is ours."""
    return {"packages": code} if code else {}


class _AttackSettings(NamedTuple):
    settings: dict[str, Any]
    """As resolved, JSON values."""
    said: list[str]
    """What ``--set`` would give over the recipe's."""


def _kept(concept: GridConcept) -> dict[str, Any]:
    """What the recipe says to keep; nothing where it says nothing."""
    return {name: list(texts) for name in ("related", "retain") if (texts := getattr(concept, name))}


@functools.cache
def paths_code() -> str:
    """Of the code that samples the frozen teacher's paths: they are shared by all that it made."""
    return sources.code_hash("metaunlearn.erasure.trajectories")[:KEY_DIGITS]
