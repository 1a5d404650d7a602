"""The two phases of an erasing run: Algorithm 1's N outer steps, then ``heal_steps`` that lower L_retain alone.

Steps are counted through: erasing takes steps 0 .. N - 1, healing N .. N + heal_steps - 1. Healing starts from what the
first phase would have saved (a moving average, or SDD's teacher, where there is one) with an optimiser of its own, and
moves the same parameters phi. The concept has no part in it: no L_forget, no meta objective. What resists relearning is
held only by how few and how small its steps are.
"""

from __future__ import annotations

import math

from metaunlearn.config import EraseSettings


def healing(step: int, settings: EraseSettings) -> bool:
    """Whether outer step ``step`` (from 0) belongs to the second phase."""
    return settings.heal_steps > 0 and step >= settings.steps


def learning_rate_at(step: int, settings: EraseSettings) -> float:
    """The outer learning rate at ``step``: omega, constant or falling to 0 over N steps; then that of healing."""
    if healing(step, settings):
        start = settings.heal_learning_rate or settings.learning_rate
        return _cosine(start, step - settings.steps, settings.heal_steps)
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    return _cosine(settings.learning_rate, step, settings.steps)


def _cosine(start: float, step: int, steps: int) -> float:
    """start (1 + cos(pi step / steps)) / 2."""
    return start * 0.5 * (1 + math.cos(math.pi * step / steps))
