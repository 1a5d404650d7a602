"""One state of one model of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metaunlearn.bench.recipe import ModelName

BEFORE = "before"
"""The attack of a state that none came to."""


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
    step: float
    """Steps of training that the attack took, or its strength."""

    def labels(self) -> dict[str, Any]:
        """What ``--only`` can ask for."""
        names = ("concept", "seed", "method", "variant", "model", "attack", "step")
        return {name: getattr(self, name) for name in names}
