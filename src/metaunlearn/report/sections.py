"""The curves of a page as plain data for the template: panels with what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from metaunlearn.report.charts import WHOLE, Curve, loss_chart, relearning_chart
from metaunlearn.report.data import (
    ATTACKS,
    MODELS,
    AttackName,
    ModelName,
    Score,
    Summary,
)
from metaunlearn.report.reading import IN_THE_TABLE, reading
from metaunlearn.report.runs import RunCard, thinned
from metaunlearn.report.story import MODEL_TITLES

Metric = Literal["concept", "related", "unrelated"]

ATTACK_TITLES: dict[str, str] = {
    "malicious": "Malicious finetuning",
    "strong": "Strong malicious finetuning",
    "benign": "Benign finetuning",
}
ROLE_TITLES: dict[str, str] = {
    "concept": "The erased concept",
    "related": "Related concepts",
    "unrelated": "Unrelated concepts",
}
CLEAR_FALL = 10.0
"""Percentage points; a smaller fall of the related concepts is not called self-destruction."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart with what must be said beside it."""

    title: str
    note: str
    svg: Markup
    description: str
    """What a reader who cannot see the chart is told."""
    reading: str
    """What the page's script says of each step."""
    table: list[tuple[int, list[Score | None]]]
    """Step and, for each curve, its score."""
    models: list[ModelName]


def panels(summary: Summary, metric: Metric) -> list[Panel]:
    """A chart of ``metric`` for each attack under which at least one erased model was scored more than once."""
    original = summary.models.get("original")
    level: Score | None = getattr(original.before, metric) if original else None
    found = []
    for attack in ATTACKS:
        curves = [curve for model in MODELS if (curve := _curve(summary, model, attack, metric))]
        if curves:
            found.append(_panel(attack, metric, curves, level))
    return found


def _curve(summary: Summary, model: ModelName, attack: AttackName, metric: Metric) -> Curve | None:
    scores = summary.models.get(model)
    if scores is None:
        return None
    points = [(at, score) for at, state in scores.curve(attack).items() if (score := getattr(state, metric))]
    return Curve(model=model, points=points) if len(points) > 1 else None


def _panel(attack: AttackName, metric: Metric, curves: list[Curve], level: Score | None) -> Panel:
    steps = sorted({at for curve in curves for at, _ in curve.points})
    by_step = [dict(curve.points) for curve in curves]
    changes = [
        f"{MODEL_TITLES[curve.model]}: {curve.points[0][1].value:.0f} → {curve.points[-1][1].value:.0f} %"
        for curve in curves
    ]
    reference = f" The original is at {level.value:.0f} %." if level else ""
    subject = ROLE_TITLES[metric].lower()
    return Panel(
        title=ATTACK_TITLES[attack],
        note="; ".join(changes),
        svg=relearning_chart(curves, level.value if level else None),
        description=(
            f"Score of {subject} by step of {ATTACK_TITLES[attack].lower()}. {'; '.join(changes)}.{reference} "
            f"{IN_THE_TABLE}"
        ),
        reading=reading(curves, WHOLE, steps[-1]),
        table=[(at, [points.get(at) for points in by_step]) for at in steps],
        models=[curve.model for curve in curves],
    )


def self_destruction(summary: Summary) -> str:
    """Whether related concepts fell under attack, more than in the unlearned model and than under benign finetuning.

    The attack is the malicious one, or the strong one where that was not run; empty when related ones were not scored.
    """
    attack: AttackName = "malicious" if _fall(summary, "meta-unlearn", "malicious") is not None else "strong"
    drop = _fall(summary, "meta-unlearn", attack)
    if drop is None:
        return ""
    plain, benign = _fall(summary, "unlearn", attack), _fall(summary, "meta-unlearn", "benign")
    words = f"Under {ATTACK_TITLES[attack].lower()} the related concepts {_moved(drop)} in the meta-unlearned model"
    words += "." if plain is None else f"; in the unlearned one they {_moved(plain)}."
    if benign is not None:
        words += f" Under benign finetuning the meta-unlearned model's {_moved(benign)}."
    if drop < CLEAR_FALL:
        return f"{words} So self-destruction, the paper's Figure 1, is not seen in this run."
    if plain is not None and drop - plain < CLEAR_FALL:
        return f"{words} So meta-unlearning adds little to what finetuning destroys anyway in this run."
    if benign is not None and benign > drop / 2:
        return f"{words} So the loss is not special to the attack in this run."
    return f"{words} This is the self-destruction of the paper's Figure 1."


def _fall(summary: Summary, model: ModelName, attack: AttackName) -> float | None:
    curve = _curve(summary, model, attack, "related")
    return curve.points[0][1].value - curve.points[-1][1].value if curve else None


def _moved(points: float) -> str:
    if abs(points) < 2:
        return "hardly move"
    return f"{'fall' if points > 0 else 'rise'} by {abs(points):.0f} points"


@dataclass(frozen=True, kw_only=True)
class LossPanel:
    """One loss curve of a run."""

    name: str
    svg: Markup
    description: str


def loss_panels(card: RunCard) -> list[LossPanel]:
    """A chart for each loss that the run logged."""
    found = []
    for name, points in card.losses.items():
        first, last = points[0], points[-1]
        words = f"{name} from {first[1]:.4g} at step {first[0]:g} to {last[1]:.4g} at step {last[0]:g}"
        found.append(LossPanel(name=name, svg=loss_chart(thinned(points)), description=words))
    return found
