"""Which variant of a component's weights is read: plain ones, or half precision where there are no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaunlearn.errors import UserError

VARIANTS = (None, "fp16", "bf16")
"""In the order of preference: the plain ones, then half precision, cast to float32."""
PICKLES = (".bin", ".ckpt", ".pt")


def choose_variant(files: Sequence[str], model: str, component: str = "unet") -> str | None:
    """Which variant of ``component``'s weights ``files``, paths in a repository, hold; None is the plain one.

    UserError when there is none that can be read.
    """
    own = [file for file in files if file.startswith(f"{component}/")]
    weights = [file for file in own if file.endswith(".safetensors")]
    for variant in VARIANTS:
        dots = 1 if variant is None else 2
        if any(
            Path(file).name.count(".") == dots and (variant is None or f".{variant}" in Path(file).name)
            for file in weights
        ):
            return variant
    called = "denoiser" if component == "unet" else component
    pickles = [file for file in own if file.endswith(PICKLES)]
    if pickles:
        raise UserError(
            f"MODEL {model} has its {called} as a pickle only ({pickles[0]}), which could run code when it is opened; "
            "ask its authors for .safetensors, or convert it in a sandbox of your own."
        )
    if weights:
        raise UserError(f"MODEL {model} has its {called} in no variant that is known here: {', '.join(weights[:4])}.")
    usual = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
    raise UserError(f"MODEL {model} has no weights of a {called}: expected {component}/{usual}.safetensors.")


def variant_in(folder: Path, component: str) -> str | None:
    """The same of a pipeline's folder."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.glob(f"{component}/*"))
    return choose_variant(files, str(folder), component)


def variants_of(files: Sequence[str], model: str, components: Sequence[str]) -> dict[str, str | None]:
    """Of a repository with these ``files``: the variant of each of ``components`` that it has, and of its denoiser."""
    there = [name for name in components if name == "unet" or any(file.startswith(f"{name}/") for file in files)]
    return {name: choose_variant(files, model, name) for name in there}
