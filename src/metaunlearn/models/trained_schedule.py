"""The part of a scheduler's configuration that the weights were trained with. How it samples is the user's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

TRAINED: dict[str, Any] = {
    "num_train_timesteps": None, "beta_start": None, "beta_end": None, "beta_schedule": None, "trained_betas": None,
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip
"""The settings, and what a scheduler does whose configuration does not have one."""


def trained_with(config: Mapping[str, Any]) -> dict[str, Any]:
    """All of ``TRAINED`` that a scheduler of this ``config`` was trained with."""
    return {key: config.get(key, usual) for key, usual in TRAINED.items()}


def lost_by(scheduler: Any, wanted: Mapping[str, Any]) -> list[str]:
    """Those settings of ``wanted``, as ``key = value``, that ``scheduler`` does not follow: it lacks them."""
    follows = trained_with(scheduler.config)
    # A pipeline that is not from a folder may have its betas as an array.
    lost = [key for key in wanted if key in TRAINED and not np.array_equal(follows[key], wanted[key])]
    return [f"{key} = {wanted[key]}" for key in lost]
