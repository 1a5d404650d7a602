"""Saving pipelines so that a result folder is whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from metaunlearn.data.imagefolder import to_uint8
from metaunlearn.errors import RunError
from metaunlearn.fetching import SAMPLING_FILE
from metaunlearn.files import whole_or_absent, write_json
from metaunlearn.generation import Sampling, default_sampling, write_sampling
from metaunlearn.models.interface import TextToImageModel
from metaunlearn.parameters import not_finite

WHOLE = "100GB"
"""Least size of a component that comes in several files: diffusers' 10 GB would cut XL's denoiser in float32 in two,
which its authors publish, and other programs expect, as one."""
TEXT_MODEL = "text_model."
"""How a CLIPTextModel's names begin in published files; to a module of transformers 5's they do not."""


def _check_finite(pipeline: Any) -> None:
    broken = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module) and not_finite(part)]
    if broken:
        raise RunError(
            f"the weights of {' and '.join(broken)} are not finite numbers, so nothing was written. Lower "
            "learning_rate (--set learning_rate=...), or the strength of an attack."
        )


def save_pipeline(
    model: TextToImageModel, folder: Path, *, twin: Path | None = None, changed: Sequence[str] = ("unet",)
) -> None:
    """Write the pipeline to ``folder``, entry by entry through a hidden folder beside it.

    ``twin`` is a folder that holds the same pipeline but for the components ``changed``: everything else is
    hard-linked from there where the file system can. One that has lost a part of it is no twin. RunError when weights
    are no finite numbers: nobody can use them.
    """
    _check_finite(model.pipeline)
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    if twin is None or not _holds(twin, model.pipeline, changed):
        model.pipeline.save_pretrained(staging, safe_serialization=True, max_shard_size=WHOLE)
        _name_processors_for_all(staging / "model_index.json")
        write_sampling(staging, default_sampling(model.pipeline))
        written: Sequence[str] = list(model.pipeline.components)
    else:
        written = changed
        _link_all_but(changed, twin, staging)
        for name in changed:
            part = getattr(model.pipeline, name)
            part.save_pretrained(staging / name, safe_serialization=True, max_shard_size=WHOLE)
    for name in written:
        _let_all_read(getattr(model.pipeline, name), staging / name)
    mode = (staging / "model_index.json").stat().st_mode
    for file in staging.rglob("*.safetensors"):  # Nobody else may read what safetensors creates.
        file.chmod(mode)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sorted(staging.iterdir()):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        else:  # A rename onto another link of the same file would leave both.
            target.unlink(missing_ok=True)
        entry.replace(target)
    staging.rmdir()


def _holds(folder: Path, pipeline: Any, changed: Sequence[str]) -> bool:
    """Whether all of ``pipeline`` but ``changed`` has its entry in ``folder``."""
    wanted = [name for name, part in pipeline.components.items() if part is not None and name not in changed]
    wanted += ["model_index.json", *([SAMPLING_FILE] if default_sampling(pipeline) != Sampling() else [])]
    return all((folder / name).exists() for name in wanted)


def _name_processors_for_all(index: Path) -> None:
    """Where torchvision is missing transformers stands in a class of its own, which other versions do not have."""
    named = json.loads(index.read_text(encoding="utf-8"))
    for kind in named.values():
        if isinstance(kind, list) and kind[0] == "transformers" and kind[1].endswith("ImageProcessorPil"):
            kind[1] = kind[1].removesuffix("Pil")
    write_json(index, named)


def _let_all_read(part: Any, folder: Path) -> None:
    """Add what transformers 4 looks for, and 5 reads as well but leaves out.

    Without it 4 makes up a CLIPTextModel's weights, with no more than a warning, and cannot read a tokenizer.
    """
    if isinstance(part, CLIPTextModel):
        for file in folder.glob("*.safetensors"):
            _begin_names_with(TEXT_MODEL, file)
    elif isinstance(part, CLIPTokenizer):
        part.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def _begin_names_with(prefix: str, file: Path) -> None:
    tensors = load_file(file)
    if any(name.startswith(prefix) for name in tensors):  # It was read from such a file.
        return
    with whole_or_absent(file) as partial:
        save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, partial, {"format": "pt"})


def _link_all_but(changed: Sequence[str], twin: Path, staging: Path) -> None:
    staging.mkdir(parents=True)
    names = [name for name in PIPELINE_ENTRIES if name not in changed and (twin / name).exists()]
    for name in names:
        source = twin / name
        if source.is_dir():
            shutil.copytree(source, staging / name, copy_function=_link)
        else:
            _link(str(source), str(staging / name))


PIPELINE_ENTRIES = (
    "model_index.json", SAMPLING_FILE, "scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2",
    "unet", "vae", "feature_extractor", "safety_checker", "image_encoder",
)  # fmt: skip
"""What a Stable Diffusion pipeline's folder holds."""


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def save_image(file: Path, image: Tensor) -> None:
    """Write one picture (3, H, W) in [0, 1] as an 8-bit PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy()).save(file)
