"""A LoRA that was trained on another model, say the base one, merged into the erased model at chosen strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open

from metaunlearn.attacks.interface import AttackTask, Input
from metaunlearn.errors import UserError, first_line
from metaunlearn.models import adapt, with_own_denoiser
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.pipelines import save_pipeline
from metaunlearn.settings import Settings


class LoraMerge(Settings):
    """W + s (alpha / r) B A for each strength s, whatever format diffusers reads the LoRA from."""

    needs: ClassVar[tuple[Input, ...]] = ()
    level: ClassVar[str] = "strength"
    strengths: ClassVar[tuple[float, ...]] = (0.5, 1.0)
    leaves: ClassVar = "pipeline"
    changed: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2")

    adapter: Path
    """The LoRA's .safetensors file, as the attack ``lora`` or other tools write it."""

    def check(self, model: TextToImageModel, base: TextToImageModel | None, strengths: Sequence[float]) -> None:
        """The file must be a LoRA that fits ``model``."""
        where = f"the LoRA {self.adapter} (adapter, --set adapter=FILE)"
        if find_spec("peft") is None:
            raise UserError("lora-merge needs the package peft: pip install 'metaunlearn[lora]'.")
        if self.adapter.suffix != ".safetensors" or not self.adapter.is_file():
            raise UserError(f"{where} is no .safetensors file; pickles (.bin, .pt, .ckpt) are refused.")
        try:
            with safe_open(self.adapter, framework="pt") as handle:
                names = list(handle.keys())
        except SafetensorError as error:
            raise UserError(f"{where} cannot be read: {error}.") from error
        if not any("lora" in name for name in names):
            raise UserError(f"{where} holds no low-rank factors, but {', '.join(names[:3])}.")
        try:
            self._fused(model, 1.0)
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"{where} does not fit MODEL: {first_line(error)}.") from error

    def make(self, task: AttackTask, strength: float, folder: Path, twin: Path | None) -> Mapping[str, Any]:
        """Save the merged pipeline."""
        save_pipeline(self._fused(task.model, strength), folder)
        return {}

    def _fused(self, model: TextToImageModel, strength: float) -> TextToImageModel:
        pipeline = with_own_denoiser(model.pipeline, *model.text_encoders)
        pipeline.load_lora_weights(
            self.adapter.parent, weight_name=self.adapter.name, local_files_only=True, use_safetensors=True
        )
        pipeline.fuse_lora(lora_scale=strength)
        pipeline.unload_lora_weights()
        return adapt(pipeline, model.device)
