"""Subsets on the names of a real UNet2DConditionModel, the gradient, and the dictionary arithmetic."""

from __future__ import annotations

import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from meta_problems import unet
from metaunlearn.errors import RunError, UserError
from metaunlearn.parameters import (
    Loss,
    MeanLoss,
    Params,
    SharedLoss,
    absorb,
    add,
    digest,
    dot,
    hand_gradient,
    norm,
    same,
    scale,
    subset,
    value_and_gradient,
)


@pytest.fixture(scope="module")
def names() -> frozenset[str]:
    """Parameter names of a UNet with the blocks of Stable Diffusion 1.4; only its widths are small."""
    network = UNet2DConditionModel(block_out_channels=(4, 8, 16, 16), norm_num_groups=2, attention_head_dim=2)
    return frozenset(name for name, _ in network.named_parameters())


def holding(names: frozenset[str], *parts: str) -> frozenset[str]:
    """The names in which any of ``parts`` occurs."""
    return frozenset(name for name in names if any(part in name for part in parts))


def test_real_names_have_everything_the_rules_speak_of(names: frozenset[str]) -> None:
    """As many tensors as Stable Diffusion 1.4 has: 686."""
    assert len(names) == 686
    for part in ("conv_norm_out.", "conv_out.", "time_embedding.", "time_emb_proj."):
        assert holding(names, part)


def test_cross_attention(names: frozenset[str]) -> None:
    """16 blocks x (to_q, to_k, to_v, to_out weight and bias) = 80; keys and values alone = 32, as UCE counts them."""
    assert subset(names, "x") == holding(names, ".attn2.")
    assert len(subset(names, "x")) == 80
    assert len(subset(names, "x-strict")) == 32
    assert subset(names, "x-strict") == holding(names, "attn2.to_k.weight", "attn2.to_v.weight")


def test_first_cross_attention() -> None:
    """Figure 6: one layer, 5 tensors; numbers count as numbers, and a model without one below has it in the middle."""
    tensors = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias")

    def layer(block: str) -> set[str]:
        return {f"{block}.attentions.0.transformer_blocks.0.attn2.{tensor}" for tensor in tensors}

    up, middle, tenth, second = map(layer, ("up_blocks.1", "mid_block", "down_blocks.10", "down_blocks.2"))
    others = {"conv_in.weight", "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q.weight"}
    assert subset({*up, *middle, *tenth, *second, *others}, "first-xattn") == second
    assert subset({*up, *middle, *others}, "first-xattn") == middle
    with pytest.raises(UserError, match="first-xattn"):
        subset(others, "first-xattn")


def test_first_cross_attention_of_stable_diffusion(names: frozenset[str]) -> None:
    assert subset(names, "first-xattn") == holding(names, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.")
    assert len(subset(names, "first-xattn")) == 5


def test_self_attention(names: frozenset[str]) -> None:
    assert subset(names, "selfattn") == holding(names, ".attn1.")
    assert len(subset(names, "selfattn")) == 80


def test_u_leaves_out_cross_attention_time_embedding_and_the_whole_output_layer(names: frozenset[str]) -> None:
    """The 4 time-embedding tensors and the 4 of conv_norm_out and conv_out: 686 - 80 - 4 - 4 = 598 are trained."""
    u = subset(names, "u")
    left_out = {
        *holding(names, "attn2"),
        *(f"time_embedding.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        *(f"{layer}.{kind}" for layer in ("conv_norm_out", "conv_out") for kind in ("weight", "bias")),
    }
    assert names - u == left_out
    assert len(u) == 598
    # CompVis called these emb_layers, so its rule never left them out; diffusers' name only looks like time_embed.
    assert holding(names, "time_emb_proj") <= u
    # The norm in front of cross-attention is not part of it.
    assert holding(names, "transformer_blocks.0.norm2") <= u


def test_f_is_everything(names: frozenset[str]) -> None:
    assert subset(names, "f") == names


def test_unknown_and_empty_subsets(names: frozenset[str]) -> None:
    with pytest.raises(UserError, match=r"'x-strickt'.*--set subset.*Did you mean 'x-strict'"):
        subset(names, "x-strickt")
    with pytest.raises(UserError, match=r"none of the model's 1 parameters"):
        subset(["conv_in.weight"], "x")


@pytest.fixture
def a() -> Params:
    return {"p": torch.tensor([1.0, 2.0]), "q": torch.tensor([[3.0]])}


@pytest.fixture
def b() -> Params:
    """Same names as ``a``, in another order."""
    return {"q": torch.tensor([[10.0]]), "p": torch.tensor([-1.0, 4.0])}


def test_arithmetic(a: Params, b: Params) -> None:
    """a + 0.5 b = (0.5, 4, 8); <a, b> = -1 + 8 + 30 = 37; ||a|| = sqrt(1 + 4 + 9)."""
    total = add(a, b, 0.5)
    assert total["p"].tolist() == [0.5, 4.0]
    assert total["q"].tolist() == [[8.0]]
    assert scale(a, -2.0)["p"].tolist() == [-2.0, -4.0]
    assert dot(a, b) == 37.0
    assert norm(a) == pytest.approx(14**0.5)


def test_arithmetic_leaves_its_arguments_alone(a: Params, b: Params) -> None:
    results = [add(a, b), scale(a, 2.0), scale(a, 1.0)]
    for result in results:
        for p in result.values():
            p.zero_()
    assert a["p"].tolist() == [1.0, 2.0]
    assert b["q"].tolist() == [[10.0]]


@pytest.mark.parametrize("factor", [1e-35, 1e30])
def test_norm_of_tiny_and_huge_float32(a: Params, factor: float) -> None:
    """The squares of both leave the range of float32."""
    assert norm(scale(a, factor)) == pytest.approx(14**0.5 * factor, rel=1e-6)


def test_different_names_are_refused(a: Params) -> None:
    with pytest.raises(KeyError, match="q"):
        add(a, {"p": a["p"]})


def test_value_and_gradient(a: Params) -> None:
    """L = |p|^2 + 5 q = 5 + 15; dL/dp = 2 p = (2, 4), dL/dq = 5."""

    def loss(theta: Params) -> torch.Tensor:
        return theta["p"].square().sum() + 5 * theta["q"].sum()

    value, gradient = value_and_gradient(loss, a)
    assert float(value) == 20.0
    assert gradient["p"].tolist() == [2.0, 4.0]
    assert gradient["q"].tolist() == [[5.0]]
    assert value_and_gradient(loss, a, {"q"}).gradient.keys() == {"q"}
    assert not any(p.requires_grad for p in a.values())


def test_a_loss_that_ignores_a_parameter(a: Params) -> None:
    with pytest.raises(RunError, match="1 of 2 parameters: q"):
        value_and_gradient(lambda theta: theta["p"].sum(), a)
    with pytest.raises(RunError, match="any parameter"):
        value_and_gradient(lambda theta: torch.zeros(()), a)


def handed(loss: Loss, theta: Params, *, unused: frozenset[str] = frozenset()) -> Params:
    """What ``hand_gradient`` hands over, by name."""
    found: Params = {}
    hand_gradient(loss, theta, found.__setitem__, unused=unused)
    return found


def test_a_gradient_that_is_handed_over_is_the_gradient() -> None:
    """Of a network, and of losses in several parts or processes: bit for bit."""
    problem, theta = unet(1, torch.float32)
    loss = problem.inner_losses[0]
    halves = MeanLoss((loss, lambda theta: 3 * loss(theta)))
    for one in (loss, halves, SharedLoss(loss, lambda found: {name: 2 * p for name, p in found.items()})):
        expected = value_and_gradient(one, theta).gradient
        assert same(handed(one, theta), expected)
    assert not any(p.requires_grad or p.grad is not None for p in theta.values())


def test_only_one_parameters_gradient_is_there_at_a_time() -> None:
    theta = {str(number): torch.full((1000,), float(number)) for number in range(5)}
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    most = 0

    def take(name: str, gradient: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(gradient.untyped_storage()))
        most = max(most, len({id(found()) for found in alive if found() is not None}))

    def loss(theta: Params) -> Tensor:
        value = torch.ones(1000)
        for p in theta.values():
            value = (value * p).tanh()
        return value.sum()

    hand_gradient(loss, theta, take)
    assert len(alive) == 5
    assert most == 1


def test_what_a_loss_leaves_out_is_handed_over_as_zero(a: Params) -> None:
    def loss(theta: Params) -> Tensor:
        return theta["p"].square().sum()

    found = handed(loss, a, unused=frozenset({"q"}))
    assert found["q"].tolist() == [[0.0]]
    assert found["p"].tolist() == [2.0, 4.0]
    with pytest.raises(RunError, match="1 of 2 parameters: q"):
        handed(loss, a)
    with pytest.raises(RunError, match="any parameter"):
        handed(lambda theta: torch.zeros(()), a)


def test_what_is_absorbed_is_added_and_gone(a: Params, b: Params) -> None:
    expected, before = add(a, b, -0.3), {name: p.clone() for name, p in a.items()}
    assert same(absorb(a, b, -0.3), expected)
    assert b == {}
    assert same(a, before)
    with pytest.raises(KeyError, match="q"):
        absorb(a, {"p": a["p"]})


def test_parameters_are_the_same_in_any_order_and_one_precision() -> None:
    x, y = torch.arange(3.0), torch.ones(2, 2)
    assert digest({"x": x, "y": y}) == digest({"y": y, "x": x}) != digest({"x": y, "y": x})
    assert same({"x": x, "y": y}, {"y": y.clone(), "x": x.clone()})
    assert not same({"x": x}, {"x": x.bfloat16()})
    assert not same({"x": x, "y": y}, {"x": x, "y": 2 * y})
