"""``import`` and ``export``: between a diffusers folder and one file in the original layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError
from metaunlearn.files import check_new_file, needed_path, path_of
from metaunlearn.models import adapt, load_pipeline
from metaunlearn.models.checks import check_pipeline
from metaunlearn.models.singlefile import DTYPES, load_single_file, save_single_file
from metaunlearn.pipelines import save_pipeline
from metaunlearn.precision_names import long

CLIP_VOCABULARY = 49408
CHANNELS, RGB = 4, 3
"""Of latents and of pictures, in all published models of the families that are handled."""

logger = logging.getLogger(__name__)


def export(model: Any, out: Path | str, *, precision: str = "float32") -> dict[str, Any]:
    """Write ``model``, a MODEL or a pipeline, as one ``.safetensors`` file that ComfyUI and A1111 load.

    ``precision`` is float32 (the very weights), float16 or bfloat16; fp16 and bf16 will do. Returns what the command
    line prints with ``--json``. Raises UserError before any work.
    """
    precision = long(precision)
    if precision not in DTYPES:
        raise UserError(f"expected a precision of {', '.join(DTYPES)} (precision=..., --precision), got {precision!r}.")
    out = needed_path(out, "out=, --out FILE")
    check_new_file(out, ".safetensors")
    pipeline = load_pipeline(model)
    check_pipeline(pipeline)
    if len(pipeline.tokenizer) != CLIP_VOCABULARY:
        logger.warning(
            "the model has a tokenizer of its own (%d tokens); programs that load such files bring CLIP's (%d) and "
            "will misread prompts",
            len(pipeline.tokenizer),
            CLIP_VOCABULARY,
        )
    if unusual := _unusual(pipeline):
        logger.warning(
            "the model %s, which the original layout has no words for: ComfyUI and A1111 would draw noise with it; "
            "metaunlearn import, with the folder as --config, and the folder itself keep it whole",
            " and ".join(unusual),
        )
    family = save_single_file(pipeline, out, dtype=DTYPES[precision])
    return {"file": str(out), "architecture": family.name, "precision": precision, "bytes": out.stat().st_size}


def _unusual(pipeline: Any) -> list[str]:
    """What a file in the original layout has no words for, and no published model of its family has."""
    vae, found = pipeline.vae.config, []
    if vae.latent_channels != CHANNELS:
        found.append(f"has latents of {vae.latent_channels} channels ({CHANNELS} is usual)")
    if {vae.in_channels, vae.out_channels} != {RGB}:
        found.append("has an autoencoder of grey pictures")
    if pipeline.scheduler.config.get("prediction_type") == "sample":
        found.append("predicts the latent itself (sample)")
    return found


def import_checkpoint(file: Path | str, out: Path | str, *, config: Path | str | None = None) -> dict[str, Any]:
    """Turn a checkpoint in the original layout into the diffusers folder ``out``, in float32.

    ``config`` is a diffusers folder of the same family for the configuration and the tokenizer; its weights, if it has
    any, are not read. Raises UserError before any work.
    """
    file, out, config = path_of(file), path_of(out), path_of(config)
    if not file.is_file() or file.suffix.lower() != ".safetensors":
        raise UserError(
            f"expected a .safetensors file, got {file}; pickled checkpoints (.ckpt, .pt, .bin) are refused."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"the output folder {out} is not empty; choose another (out=..., --out DIR).")
    model = adapt(load_single_file(file, config))
    save_pipeline(model, out)
    return {"out": str(out), "pipeline": type(model.pipeline).__name__, "parameters": model.parameter_count}
