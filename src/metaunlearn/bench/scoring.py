"""What is measured of a state, as facts of a cell: on a task of Canvas, prompts, pictures, or by UnlearnDiffAtk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metaunlearn.attacks.detectors import JUDGE
from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.identity import art_hash, judge_identity
from metaunlearn.bench.inputs import Input, Inputs, recipe_file
from metaunlearn.bench.recipe import CANVAS, Grid, GridConcept, GridPrompts, Place
from metaunlearn.bench.scores_asked import check_labels
from metaunlearn.bench.state import State
from metaunlearn.bench.weights import asks_judge, packages_of, weights_of, with_weights
from metaunlearn.data.wording import said_as
from metaunlearn.errors import UserError
from metaunlearn.metrics.judge import has_labels
from metaunlearn.metrics.registry import code_behind


@dataclass(frozen=True, kw_only=True)
class Work:
    """A cell without the cells that it needs."""

    kind: str
    spec: Mapping[str, Any]
    call: Mapping[str, Any]
    size: float
    missing: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """Beside those that every cell of the kind depends on."""
    named: str = ""
    """What people call it beside the state."""
    drawn: Mapping[str, Work] = field(default_factory=dict)
    """The drawing of the pictures that it scores, by the name of its argument; the state's cells are theirs then."""


APART = 100_003
"""The noise of two of a grid's seeds is so far apart: a prompt's pictures have one seed after another."""


class Scoring:
    """What a grid measures."""

    def __init__(self, grid: Grid, inputs: Inputs, base: Input) -> None:
        self.grid, self.inputs, self.base = grid, inputs, base

    def work(self, state: State, concept: GridConcept, place: Place, word: str = "") -> Work:
        """What is measured of ``state``; ``word`` stands in prompts where the concept's name was, if there is one."""
        if self.grid.measure is not None:
            return self._task(state, place, word)
        return self._prompts(state, concept, place, word)

    def pictures(self, state: State, attack: GridAttack) -> Work:
        """What is seen in the pictures that ``attack`` leaves."""
        assert self.grid.measure is not None  # read_bench() lets nothing else pass.
        facts = {"concept": state.concept, "shown": self.grid.measure.shown}
        return Work(kind="judge", spec={**facts, "judge": judge_identity(CANVAS)}, call=facts, size=attack.pictures)

    def adversarial(
        self, state: State, concept: GridConcept, attack: GridAttack, settings: Mapping[str, Any], said: Sequence[str]
    ) -> Work:
        """The attack on prompts with these ``settings``, which ``said`` gives it over the recipe's."""
        assert attack.prompts is not None  # read_bench() lets nothing else pass.
        prompts = self.inputs.prompts(attack.prompts)
        success = attack.success or JUDGE
        judge = self._judge(needed=success == JUDGE)
        weights = self.inputs.weights(weights_of(success))
        facts = {**_looked_for(concept), "seed": state.seed}
        spec = {
            "success": success, "base": self.base.identity, "prompts": prompts.identity, "settings": settings,
            "judge": judge.identity, "weights": weights.identity,
        }  # fmt: skip
        call = {
            "success": with_weights(success, weights.value), "base": self.base.value,
            "prompts": prompts.records, "judge": judge.value,
        }  # fmt: skip
        return Work(
            kind="adversarial",
            spec={**facts, **spec},
            call={**facts, **call, "recipe": recipe_file(self.grid.recipe), "overrides": list(said)},
            size=max(len(prompts.records), 1),
            missing=(*self.base.missing, *prompts.missing, *judge.missing, *weights.missing),
            packages=packages_of([success]),
        )

    def _task(self, state: State, place: Place, word: str) -> Work:
        assert self.grid.measure is not None
        counts = getattr(self.grid.measure, place).model_dump()
        facts = {
            "concept": state.concept, "seed": state.seed, "counts": counts, "shown": self.grid.measure.shown,
            "word": word,
        }  # fmt: skip
        return Work(
            kind="measure",
            spec={**facts, "base": self.base.identity, "art": art_hash(), "judge": judge_identity(CANVAS)},
            call={**facts, "base": self.base.value},
            size=sum(counts.values()),
        )

    def _prompts(self, state: State, concept: GridConcept, place: Place, word: str) -> Work:
        asked = [_Asked.of(one, concept, self.inputs, word) for one in self.grid.prompts if one.asks(place)]
        judge = self._judge(needed=any(one.asks_judge for one in asked))
        if any(one.looks_for_concept for one in asked) and not (concept.alternatives or has_labels(judge.value)):
            raise UserError(
                f"the judge {judge.value} knows no labels of its own, so {concept.name!r} needs what it may see "
                'instead: alternatives = ["a toy", "a tool"] in [[grid.concepts]].'
            )
        # An original asked with the prompts' own seeds draws the same whatever the grid's seed: it is one cell.
        alike = state.model == "original" and all(one.seeded for one in asked)
        facts = {**_looked_for(concept), "seed": 0 if alike else state.seed}
        missing = [*judge.missing, *(text for one in asked for text in one.missing)]
        metrics = [metric for one in asked for metric in one.spec["scores"].values()]
        return Work(
            kind="evaluate",
            spec={**facts, "word": word, "judge": judge.identity, "sets": [one.spec for one in asked]},
            call={**facts, "judge": judge.value, "sets": [one.call for one in asked]},
            size=sum(one.size for one in asked),
            missing=tuple(dict.fromkeys(missing)),
            packages=packages_of(metrics),
            drawn={one.call["drawn"]: self._drawing(state, one) for one in asked},
        )

    def _drawing(self, state: State, asked: _Asked) -> Work:
        """Nothing in its key tells how the pictures are scored."""
        seed = 0 if asked.seeded else state.seed * APART
        facts = {"images": asked.call["images"], "first": asked.first, "seed": seed}
        return Work(
            kind="drawn",
            spec={**facts, "base": self.base.identity, "prompts": asked.said},
            call={**facts, "base": self.base.value, "name": asked.call["name"], "prompts": asked.call["prompts"]},
            size=asked.size,
            missing=tuple(dict.fromkeys([*self.base.missing, *asked.no_prompts])),
            named=asked.call["name"],
        )

    def _judge(self, *, needed: bool) -> Input:
        """The grid's judge; where none is asked, the one that is always there."""
        return self.inputs.judge() if needed else Input(CANVAS, "")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One of the grid's ``prompts``, for one concept."""

    spec: dict[str, Any]
    call: dict[str, Any]
    said: str
    """What is asked of the model, as a hash: texts, seeds and guidance, without what a judge should see."""
    seeded: bool
    """Whether each of the prompts has a seed of its own, so that the grid's does not matter."""
    first: int | None
    """So many pictures are drawn; None: all."""
    size: int
    no_prompts: tuple[str, ...]
    """Where to get them, if they are not here."""
    missing: tuple[str, ...]
    asks_judge: bool
    looks_for_concept: bool

    @classmethod
    def of(cls, one: GridPrompts, concept: GridConcept, inputs: Inputs, word: str) -> _Asked:
        """``word`` stands where the concept's name was, if there is one."""
        prompts = inputs.prompts(one, concept.texts.get(one.name, ()))
        records = [record | {"text": said_as(record["text"], concept.erased, word)} for record in prompts.records]
        reference = inputs.reference(one.reference) if one.reference else Input("", "")
        weights = {metric: inputs.weights(weights_of(metric)) for metric in one.scores.values()}
        metrics = {score: with_weights(metric, weights[metric].value) for score, metric in one.scores.items()}
        facts = {"name": one.name, "shown": one.shown, "sensitive": one.sensitive}
        hashes = {name: found.identity for metric, found in weights.items() if (name := weights_of(metric))}
        code = code_behind(one.scores.values())
        pictures = max(len(records), 1) * one.images
        first = None if one.scores or one.shown >= pictures else one.shown
        check_labels(one.name, list(one.scores.values()), records)
        return cls(
            spec={
                **facts, "prompts": prompts.identity, "scores": one.scores, "weights": hashes,
                "reference": reference.identity, **({"packages": code} if code else {}),
            },
            call={
                **facts, "drawn": f"drawn_{one.name}", "images": one.images, "prompts": records, "scores": metrics,
                "reference": reference.value,
            },
            said=_said(records) if records else prompts.identity,
            seeded=bool(records) and all(record.get("seed") is not None for record in records),
            first=first,
            size=first or pictures,
            no_prompts=prompts.missing,
            missing=(*prompts.missing, *reference.missing, *(text for f in weights.values() for text in f.missing)),
            asks_judge=any(map(asks_judge, weights)),
            looks_for_concept="concept" in one.scores.values(),
        )  # fmt: skip


def _said(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [[record["text"], record.get("seed"), record.get("guidance_scale")] for record in records]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def _looked_for(concept: GridConcept) -> dict[str, Any]:
    """What a judge looks for, and what it may see instead."""
    return {"concept": concept.erased, "alternatives": list(concept.alternatives)}
