"""In how many steps a pipeline's scheduler can sample: its noise schedule has room for so many, and not for more."""

from __future__ import annotations

import copy
from typing import Any

from metaunlearn.errors import UserError

MULTISTEP = 10
"""Steps with which every method that looks back on earlier ones has enough of them."""


def check_sampling_steps(pipeline: Any, steps: int) -> None:
    """UserError when the pipeline's scheduler cannot sample in so many ``steps``."""
    if not _can_sample(pipeline, steps):
        fewer = possible_steps(pipeline, steps)
        more = next((more for more in range(steps + 1, MULTISTEP + 1) if _can_sample(pipeline, more)), None)
        take = (
            f"; take {fewer} or fewer"
            if fewer < steps and _can_sample(pipeline, fewer)
            else f"; take {more} or more"
            if more
            else ""
        )
        raise UserError(
            f"MODEL's noise schedule has {_timesteps(pipeline)} timesteps, and its {type(pipeline.scheduler).__name__} "
            f"cannot sample in {steps} steps (steps=, --steps){take}."
        )


def possible_steps(pipeline: Any, wanted: int) -> int:
    """``wanted``, or as many steps as the pipeline's scheduler can take."""
    if _can_sample(pipeline, wanted):
        return wanted
    most = min(wanted, _timesteps(pipeline) or wanted)  # However many are wanted: each try makes a schedule.
    return next((steps for steps in range(most, 1, -1) if _can_sample(pipeline, steps)), 1)


def _timesteps(pipeline: Any) -> int | None:
    """Of the noise schedule; a pipeline of another kind may have none."""
    scheduler = getattr(pipeline, "scheduler", None)
    count: int | None = None if scheduler is None else scheduler.config.get("num_train_timesteps")
    return count


def _can_sample(pipeline: Any, steps: int) -> bool:
    trained = _timesteps(pipeline)
    if trained is None:
        return True
    far_apart = 2 * steps <= trained  # For any spacing and offset.
    if far_apart and steps >= MULTISTEP:
        return True
    scheduler = copy.deepcopy(pipeline.scheduler)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError):
        return False
    return far_apart or bool(scheduler.timesteps.min() >= 0 and scheduler.timesteps.max() <= trained - 1)
