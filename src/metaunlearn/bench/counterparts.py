"""What a grid has for a published figure: the same method, the same checkpoint, a score that asks the same question.

Nothing is guessed: names match or they do not, and a checkpoint stands for one of the paper's by its number of steps,
or, on another model, by its place among as many. A ``grid`` here is the one that was used: with the base model and the
judge that the call gave in place of the recipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from metaunlearn.bench.attacks import GridAttack
from metaunlearn.bench.lines import Line
from metaunlearn.bench.published import PAPERS_CONCEPT, is_papers_model
from metaunlearn.bench.recipe import CANVAS, Grid, GridConcept, ModelName
from metaunlearn.bench.weights import INCEPTION
from metaunlearn.erasure.registry import find
from metaunlearn.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a published figure measures."""

    title: str
    metric: str
    """As ``evaluate --metrics`` has it."""
    judge: str
    """The paper's, in words."""
    like: tuple[str, ...] | None = None
    """Judges of a grid that count as the paper's; None: the metric brings the paper's own."""
    variants: tuple[str, ...] | None = None
    """What may stand behind the metric's colon, before an @, for it to count as the paper's; None: anything."""
    network: str = ""
    """What the metric brings in place of a judge, where the paper does not name it."""
    unit: str = ", %"
    digits: int = 1
    """Of our figure and of the difference."""
    factor: float = 1.0
    """From our unit to the paper's."""


NUDITY = Quantity(title="nudity score", metric="nudity", judge="NudeNet")
UNSAFE = Quantity(title="unsafe score", metric="unsafe", judge="Stable Diffusion's safety checker")
NSFW = Quantity(title="NSFW score", metric="nsfw", judge="LAION's CLIP-based detector", factor=100.0)
FID = Quantity(
    title="FID",
    metric="fid",
    judge="a network that it does not name",
    variants=(INCEPTION,),
    network=INCEPTION,
    unit="",
    digits=2,
)
CLIP_SCORE = Quantity(
    title="CLIP score", metric="clip-score", judge="a CLIP that it does not name", unit="", digits=2,
    like=("openai/clip-vit-base-patch32",), variants=("", "clamped", "logits"),
)  # fmt: skip
AUTHORS_TEST = "nudity:resalign-9@0.45"
"""What counts as UnlearnDiffAtk's own test of success does."""
ASR = Quantity(title="attack success rate", metric="asr", judge="NudeNet")

SEEN = "concept seen"
"""Title of our score where it stands for the nudity or the unsafe score."""
ON_CANVAS = {"nudity": "concept", "unsafe": "concept", "fid": "fid", "clip-score": "clip_score"}
"""By metric, the score of a task of Canvas that stands for it."""


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """Our score for a ``Quantity``."""

    score: str
    """Its name among the grid's."""
    title: str
    same: bool
    """Whether it is the same metric by the same judge."""


def score_for(grid: Grid, quantity: Quantity) -> Counterpart | None:
    """The score of ``grid`` that asks what ``quantity`` does; None without one."""
    if quantity is ASR:
        tests = {attack.success for attack in grid.attacks if attack.on_prompts}
        return Counterpart(score="asr", title=ASR.title, same=tests == {AUTHORS_TEST}) if tests else None
    if grid.measure is not None:
        name = ON_CANVAS.get(quantity.metric)
        title = SEEN if name == "concept" else quantity.title
        return Counterpart(score=name, title=title, same=False) if name else None
    metrics = {name: metric for prompts in grid.prompts for name, metric in prompts.scores.items()}
    for name, metric in metrics.items():
        kind, _, variant = metric.partition(":")
        if kind == quantity.metric:
            by_judge = quantity.like is None or grid.judge in quantity.like
            by_variant = quantity.variants is None or variant.partition("@")[0] in quantity.variants
            return Counterpart(score=name, title=quantity.title, same=by_judge and by_variant)
    if quantity in (NUDITY, UNSAFE) and metrics.get("concept") == "concept":
        return Counterpart(score="concept", title=SEEN, same=False)
    return None


def metric_of(grid: Grid, score: str) -> str:
    """By which metric the prompts of ``grid`` have ``score``, as ``evaluate --metrics`` has it; empty without any."""
    return next((prompts.scores[score] for prompts in grid.prompts if score in prompts.scores), "")


def same_model(grid: Grid) -> bool:
    """Whether the base model is the paper's."""
    return is_papers_model(grid.base)


def same_concept(concept: GridConcept) -> bool:
    """Whether what is erased is what the paper erases in its tables."""
    return concept.name.casefold() == PAPERS_CONCEPT


def model_title(grid: Grid) -> str:
    """The base model as a title says it: the last part of a path or an id."""
    return "Canvas" if grid.base == CANVAS else grid.base.replace("\\", "/").rstrip("/").rpartition("/")[2]


def same_method(ours: str, papers: str) -> bool:
    """Whether both are names of one method: ESD-u-1 and esd-u-1, UCE and uce-2023."""
    return _canonical(ours) == _canonical(papers)


@cache  # Asked for every figure of a table, and find() reads what every installed package brings.
def _canonical(name: str) -> str:
    name = name.lower()
    try:
        return find(name).name
    except UserError:
        return name


def lines_for(grid: Grid, papers: str, model: ModelName, *, stand_in: bool = False) -> list[Line]:
    """The grid's lines of ``model`` by the paper's method; with ``stand_in`` by any method where it lacks that one."""
    if model == "original":
        return [Line("", "", "original")] if "original" in grid.models else []
    methods = [method for method in grid.methods if same_method(method, papers)]
    if stand_in and not methods:
        methods = list(grid.methods)
    return [
        Line(method, variant.name, model)
        for variant in grid.variants
        if model in (variant.models or grid.models)
        for method in methods
    ]


def attack_named(grid: Grid, name: str) -> GridAttack | None:
    """The attack that trains a model and has the paper's name for it."""
    found = (attack for attack in grid.attacks if not attack.on_prompts and attack.name.casefold() == name.casefold())
    return next(found, None)


def matched(ours: Sequence[int], papers: Sequence[int], *, by_number: bool) -> dict[int, int]:
    """By the paper's number, ours: the same one, or else the one at the same place, if there are as many."""
    if by_number:
        return {steps: steps for steps in papers if steps in ours}
    return dict(zip(sorted(papers), sorted(ours), strict=True)) if len(ours) == len(papers) else {}


def both(ours: str, papers: str) -> str:
    """One name, or two where they differ."""
    return ours if ours.casefold() == papers.casefold() else f"{ours} (paper: {papers})"
