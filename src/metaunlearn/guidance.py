"""Classifier-free guidance as diffusers' pipelines draw with it: above 1, or not at all."""

from __future__ import annotations

import math

NO_GUIDANCE = 1.0


def as_drawn(scale: float) -> float:
    """The guidance scale that a picture asked for at ``scale`` has: 0, as some models' cards say for none, is 1.

    Between 0 and 1 diffusers draws without guidance, too, and not what was asked for: ValueError.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"expected a finite guidance scale of at least 0, got {scale}")
    if 0 < scale < NO_GUIDANCE:
        raise ValueError(
            f"a guidance scale of {scale} cannot be drawn: diffusers guides above 1 only. 1 (or 0) is without guidance"
        )
    return max(float(scale), NO_GUIDANCE)
