"""The autoencoder. The decoder's levels are numbered from the picture in the original, from the latent in diffusers.

| diffusers | original |
|---|---|
| encoder.down_blocks.i.resnets.j | encoder.down.i.block.j |
| encoder.down_blocks.i.downsamplers.0.conv | encoder.down.i.downsample.conv |
| decoder.up_blocks.i.resnets.j | decoder.up.{levels - 1 - i}.block.j |
| decoder.up_blocks.i.upsamplers.0.conv | decoder.up.{levels - 1 - i}.upsample.conv |
| mid_block.resnets.j | mid.block_{j + 1} |
| mid_block.attentions.0 (linear) | mid.attn_1 (1 x 1 convolutions) |
"""

from __future__ import annotations

import re
from collections.abc import Collection

from metaunlearn.models.layout.link import Form, Link

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def vae_links(names: Collection[str]) -> list[Link]:
    """A link for each of the autoencoder's ``names``; KeyError for one that the original layout has no place for."""
    levels = 1 + max(int(match[2]) for name in names if (match := BLOCK.fullmatch(name)))
    return [_link(name, levels) for name in names]


def _link(name: str, levels: int) -> Link:
    if match := MIDDLE.fullmatch(name):
        side, part, j, rest = match.groups()
        if part == "resnets":
            return Link(f"{side}.mid.block_{int(j) + 1}.{_in_block(rest)}", (name,))
        layer, _, kind = rest.rpartition(".")
        form: Form = "pixelwise" if kind == "weight" and layer != "group_norm" else "same"
        return Link(f"{side}.mid.attn_{int(j) + 1}.{ATTENTION[layer]}.{kind}", (name,), form)
    if match := BLOCK.fullmatch(name):
        side, i, part, j, rest = match.groups()
        level = f"encoder.down.{i}" if side == "encoder" else f"decoder.up.{levels - 1 - int(i)}"
        if part == "resnets":
            return Link(f"{level}.block.{j}.{_in_block(rest)}", (name,))
        return Link(f"{level}.{part.removesuffix('rs')}.{rest}", (name,))
    if re.fullmatch(r"(encoder|decoder)\.(conv_in|conv_out|conv_norm_out)\.(weight|bias)", name):
        return Link(name.replace("conv_norm_out", "norm_out"), (name,))
    if name.startswith(("quant_conv.", "post_quant_conv.")):
        return Link(name, (name,))
    raise KeyError(f"the original layout has no place for the autoencoder's parameter {name!r}")


def _in_block(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
