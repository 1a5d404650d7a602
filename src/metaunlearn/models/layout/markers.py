"""What a file in the original layout says, beside its weights, of what the model predicts.

ComfyUI and A1111 take an XL file for one that predicts v by an empty tensor ``v_pred``, and for one whose schedule ends
in pure noise by ``ztsnr``; ModelSpec's metadata, which they write, have it in words. A 2.x file without them does not
say which of the two it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

PREDICTION = "modelspec.prediction_type"
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
    prediction = scheduler.get("prediction_type", "epsilon")
    return {PREDICTION: IN_WORDS.get(prediction, prediction)}


def said_by(keys: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The scheduler's settings that a file with these tensors and metadata gives; empty: it says nothing."""
    if V in keys:
        return {"prediction_type": "v_prediction", **({"rescale_betas_zero_snr": True} if ZERO_SNR in keys else {})}
    said = SAID.get(metadata.get(PREDICTION, "").lower())
    return {"prediction_type": said} if said else {}
