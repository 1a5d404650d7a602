"""The text encoders: OpenAI's CLIP has transformers' names in the original, too; OpenCLIP has names of its own.

| transformers | OpenCLIP |
|---|---|
| embeddings.token_embedding.weight | token_embedding.weight |
| embeddings.position_embedding.weight | positional_embedding |
| encoder.layers.i.layer_norm1, layer_norm2 | transformer.resblocks.i.ln_1, ln_2 |
| encoder.layers.i.self_attn.q_proj, k_proj, v_proj | transformer.resblocks.i.attn.in_proj_, stacked |
| encoder.layers.i.self_attn.out_proj | transformer.resblocks.i.attn.out_proj |
| encoder.layers.i.mlp.fc1, fc2 | transformer.resblocks.i.mlp.c_fc, c_proj |
| final_layer_norm | ln_final |
| text_projection.weight (outputs, inputs) | text_projection (inputs, outputs) |

Transformers' own names begin with ``text_model.`` or not, depending on the class and on the version.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from metaunlearn.models.layout.link import Link

TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
IN_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def clip_links(names: Collection[str]) -> list[Link]:
    """OpenAI's CLIP."""
    return [Link(_bare(name), (name,)) for name in names]


def open_clip_links(names: Collection[str]) -> list[Link]:
    """OpenCLIP; KeyError for a name that it has no place for."""
    links = []
    for name in names:
        bare = _bare(name)
        if bare == "text_projection.weight":
            links.append(Link("text_projection", (name,), "transposed"))
        elif bare in TOP:
            links.append(Link(TOP[bare], (name,)))
        elif match := IN_LAYER.fullmatch(bare):
            i, layer, kind = match.groups()
            block = f"transformer.resblocks.{i}"
            if layer == "self_attn.q_proj":
                three = tuple(name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
                links.append(Link(f"{block}.attn.in_proj_{kind}", three, "stacked"))
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):  # They come with the queries.
                links.append(Link(f"{block}.{LAYER[layer]}.{kind}", (name,)))
        else:
            raise KeyError(f"the original layout has no place for the text encoder's parameter {name!r}")
    return links


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")
