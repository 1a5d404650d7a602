"""What a file in the original layout says, beside its weights, of what the model predicts.

ComfyUI and A1111 take an XL file for one that predicts v by an empty tensor ``v_pred``, and for one whose schedule ends
in pure noise by ``ztsnr``; ModelSpec's metadata, which they write, have the former in words, for files of any family. A
2.x file without them does not say which of the two it is. For the latter there is no such word but this package's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from metaunlearn.models.trained_schedule import trained_with

PREDICTION = "modelspec.prediction_type"
ENDS_IN_NOISE = "metaunlearn.rescale_betas_zero_snr"
"""Key of our metadata: ``true`` or ``false``."""
V, ZERO_SNR = "v_pred", "ztsnr"
EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
"""Tensors of XL files that were trained on other noise levels: CosXL's and Playground 2.5's."""
IN_WORDS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""diffusers' names of prediction types, and ModelSpec's."""
SAID = {word: name for name, word in IN_WORDS.items()} | {name: name for name in IN_WORDS}


def marker_tensors(scheduler: Mapping[str, Any]) -> dict[str, Tensor]:
    """The empty tensors for an XL model of this ``scheduler`` configuration."""
    if scheduler.get("prediction_type") != "v_prediction":
        return {}
    zero = {ZERO_SNR: torch.empty(0)} if scheduler.get("rescale_betas_zero_snr") else {}
    return {V: torch.empty(0), **zero}


def marker_metadata(scheduler: Mapping[str, Any]) -> dict[str, str]:
    """The same in words, of a model of any family."""
    trained = trained_with(scheduler)
    prediction = trained["prediction_type"]
    ends_in_noise = "true" if trained["rescale_betas_zero_snr"] else "false"
    return {PREDICTION: IN_WORDS.get(prediction, prediction), ENDS_IN_NOISE: ends_in_noise}


def said_by(keys: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler's settings that a file with these tensors and metadata gives; empty: it says nothing."""
    marked = V in keys
    prediction = "v_prediction" if marked else SAID.get(metadata.get(PREDICTION, "").lower())
    zero = True if marked and ZERO_SNR in keys else {"true": True, "false": False}.get(metadata.get(ENDS_IN_NOISE, ""))
    said = {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    return {key: value for key, value in said.items() if value is not None}
