"""The UNet: numbered ``input_blocks``, ``middle_block`` and ``output_blocks`` in the original.

With L layers a level, level i from the outside:

| diffusers | original |
|---|---|
| conv_in | input_blocks.0.0 |
| down_blocks.i.resnets.j, .attentions.j | input_blocks.{1 + i (L + 1) + j}.0, .1 |
| down_blocks.i.downsamplers.0.conv | input_blocks.{1 + i (L + 1) + L}.0.op |
| mid_block.resnets.j, .attentions.j | middle_block.{2 j}, .{2 j + 1} |
| up_blocks.i.resnets.j, .attentions.j | output_blocks.{i (L + 1) + j}.0, .1 |
| up_blocks.i.upsamplers.0.conv | output_blocks.{i (L + 1) + L}.1.conv, .2.conv behind an attention |

Inside attentions the names are the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from metaunlearn.models.layout.link import Link

OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def unet_links(names: Collection[str], layers_per_block: int) -> list[Link]:
    """A link for each of the UNet's ``names``; KeyError for a name that the original layout has no place for."""
    with_attention = {name.split(".attentions.")[0] for name in names if ".attentions." in name}
    return [Link(_original(name, layers_per_block, with_attention), (name,)) for name in names]


def _original(name: str, layers: int, with_attention: set[str]) -> str:
    layer, _, kind = name.rpartition(".")
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{kind}"
    if match := MIDDLE.fullmatch(name):
        part, j, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * j + (part == 'attentions')}.{_inside(part, rest)}"
    if match := BLOCK.fullmatch(name):
        side, i, part, j, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if part == "downsamplers":
            return f"input_blocks.{1 + i * (layers + 1) + layers}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            behind = 2 if f"up_blocks.{i}" in with_attention else 1
            return f"output_blocks.{i * (layers + 1) + layers}.{behind}.{rest}"
        number = i * (layers + 1) + j
        block = f"input_blocks.{1 + number}" if side == "down_blocks" else f"output_blocks.{number}"
        return f"{block}.{int(part == 'attentions')}.{_inside(part, rest)}"
    raise KeyError(f"the original layout has no place for the UNet's parameter {name!r}")


def _inside(part: str, rest: str) -> str:
    """A layer inside a residual block or an attention."""
    if part == "attentions":
        return rest
    layer, _, kind = rest.rpartition(".")
    return f"{RESNET[layer]}.{kind}"
