"""The true key lists of Stable Diffusion 1.4, 2.1 and XL, on torch's meta device: nothing is allocated."""

from __future__ import annotations

import pytest
from architectures import ARCHITECTURES
from huggingface_hub import split_torch_state_dict_into_shards

from metaunlearn.erasure.uce import projections
from metaunlearn.parameters import subset
from metaunlearn.pipelines import WHOLE

PUBLISHED = {
    "sd14": (859_520_964, 83_653_863, [123_060_480]),
    "sd21": (865_910_724, 83_653_863, [340_387_840]),
    "sdxl": (2_567_463_684, 83_653_863, [123_060_480, 694_659_840]),
}
"""Parameters of the published denoiser, autoencoder and text encoders."""

COUNTS = {
    "sd14": {"f": 686, "x": 80, "x-strict": 32, "first-xattn": 5, "selfattn": 80, "u": 598},
    "sd21": {"f": 686, "x": 80, "x-strict": 32, "first-xattn": 5, "selfattn": 80, "u": 598},
    "sdxl": {"f": 1680, "x": 350, "x-strict": 140, "first-xattn": 5, "selfattn": 350, "u": 1322},
}
"""Tensors in each subset. 16 cross-attention layers of 5 tensors in 1.4 and 2.1; XL's levels have 2 and 10
transformer layers: down 2 x 2 + 2 x 10, middle 10, up 3 x 10 + 3 x 2, 70 in all. u: all but x, 4 tensors of the time
embedding and 4 of the output."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    architecture = ARCHITECTURES[name]
    modules = [architecture.build_unet(), architecture.build_vae(), *architecture.build_text_encoders()]
    unet, vae, *text = [sum(p.numel() for p in module.parameters()) for module in modules]
    assert (unet, vae, text) == PUBLISHED[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_subsets_hold_what_their_rules_say(name: str) -> None:
    unet = ARCHITECTURES[name].build_unet()
    names = [key for key, _ in unet.named_parameters()]
    assert {which: len(subset(names, which)) for which in COUNTS[name]} == COUNTS[name]
    assert len(subset(names, "u")) == len(names) - len(subset(names, "x")) - 8
    # UCE edits every key and value matrix, all of which read tokens of the text's width.
    widths = {unet.get_parameter(key).shape[1] for key in projections(names)}
    assert projections(names) == sorted(subset(names, "x-strict"))
    assert widths == {unet.config.cross_attention_dim}
    first = {key.split(".attn2.")[0] for key in subset(names, "first-xattn")}
    assert first == {f"down_blocks.{int(name == 'sdxl')}.attentions.0.transformer_blocks.0"}


def test_a_denoiser_is_saved_in_one_file() -> None:
    """As its authors publish it: XL's, in float32, is larger than what diffusers would put into one."""
    state = ARCHITECTURES["sdxl"].build_unet().state_dict()
    assert split_torch_state_dict_into_shards(state, max_shard_size="10GB").is_sharded
    assert not split_torch_state_dict_into_shards(state, max_shard_size=WHOLE).is_sharded
