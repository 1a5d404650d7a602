"""Parameter dictionaries: their gradient, their named subsets, their arithmetic.

theta is a dictionary from name to tensor. Every function here is pure: it returns new dictionaries and leaves the
tensors it was given as they were. Dictionaries that are combined must have the same names, else ``KeyError``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaunlearn.errors import RunError, UserError, did_you_mean, some_of
from metaunlearn.shards import are_pieces, as_pieces, own, summed

Params = dict[str, Tensor]
"""Parameters by name; also gradients and directions, which live in the same space."""

Loss = Callable[[Params], Tensor]
"""A scalar loss whose batch, noise and timesteps are already fixed: pure and differentiable in its parameters."""


@dataclass(frozen=True)
class MeanLoss:
    """The mean of losses on parts of a batch; its gradient is taken part by part, in the memory of one."""

    parts: tuple[Loss, ...]

    def __call__(self, theta: Params) -> Tensor:
        """The mean, in one graph."""
        return torch.stack([part(theta) for part in self.parts]).mean()


def mean_of(losses: Sequence[Loss]) -> Loss:
    """The mean of ``losses``; of one, itself."""
    return losses[0] if len(losses) == 1 else MeanLoss(tuple(losses))


@dataclass(frozen=True)
class SharedLoss:
    """The mean, over processes, of the loss that each has on its own rows; its gradient is averaged with it."""

    own: Loss
    average: Callable[[Params], Params]
    """The mean of every process's tensors."""

    def __call__(self, theta: Params) -> Tensor:
        """The mean, without a graph: that would have to reach into the other processes."""
        with torch.no_grad():
            return self.average({"value": self.own(theta)})["value"]


# --- Subsets by name -------------------------------------------------------------------------------------------------


def _outside_cross_attention(name: str) -> bool:
    """ESD's "u": all but cross-attention, the time embedding and the output layer.

    The rule was written for CompVis names: not ``attn2``, not ``time_embed``, not ``out.*``. In diffusers
    - ``time_embed.{0,2}`` became ``time_embedding.linear_{1,2}``, which still contains ``time_embed``;
    - ``*.emb_layers.1``, each block's own projection of it, became ``time_emb_proj``: trained there, so trained here;
    - XL's ``label_emb``, where the pooled prompt enters, became ``add_embedding``: trained there, so trained here;
    - ``out.{0,2}`` became two modules, ``conv_norm_out`` and ``conv_out``: both are left out.
    """
    return "attn2" not in name and "time_embed" not in name and not name.startswith(("conv_norm_out.", "conv_out."))


def _first_cross_attention(names: Collection[str]) -> set[str]:
    """The cross-attention layer that a picture meets first: the one that Figure 6 of the paper optimises."""
    layer_of = {name: name[: name.index("attn2")] for name in names if "attn2" in name}
    # down_blocks, mid_block, up_blocks: alphabetical is the order of the forward pass. Indices compare as numbers.
    first = min(
        layer_of.values(),
        key=lambda layer: [int(part) if part.isdecimal() else part for part in layer.split(".")],
        default="",
    )
    return {name for name, layer in layer_of.items() if layer == first}


def _names_where(rule: Callable[[str], bool]) -> Callable[[Collection[str]], set[str]]:
    return lambda names: set(filter(rule, names))


SUBSETS: dict[str, Callable[[Collection[str]], set[str]]] = {
    "x": _names_where(lambda name: "attn2" in name),
    "x-strict": _names_where(lambda name: "attn2.to_k." in name or "attn2.to_v." in name),
    "first-xattn": _first_cross_attention,
    "u": _names_where(_outside_cross_attention),
    "selfattn": _names_where(lambda name: "attn1" in name),
    "f": set,
}
"""The rule of each subset: which of a model's parameters, by their diffusers names, does it hold?"""


def subset(names: Iterable[str], which: str, *, setting: str = "subset", said_by: str | None = None) -> frozenset[str]:
    """The names that belong to the subset ``which`` (a key of ``SUBSETS``): phi in the equations, or what P keeps.

    ``setting`` is what an error says that the user has set, or ``said_by`` in place of a setting.
    """
    said_by = said_by or f"{setting}, --set {setting}=..."
    if which not in SUBSETS:
        raise UserError(
            f"Unknown parameter subset {which!r} ({said_by}); known: {', '.join(SUBSETS)}."
            + did_you_mean(which, SUBSETS)
        )
    names = list(names)
    chosen = frozenset(SUBSETS[which](names))
    if not chosen:
        raise UserError(
            f"Subset {which!r} ({said_by}) holds none of the model's {len(names)} parameters. "
            "Choose a subset that this model has, such as 'f' (all of them)."
        )
    return chosen


# --- The gradient ----------------------------------------------------------------------------------------------------


class ValueAndGradient(NamedTuple):
    """A loss and its gradient, both detached."""

    value: Tensor
    """A scalar tensor; it stays on its device, so that nothing waits for it."""
    gradient: Params
    """d value / d theta for the names that were asked for."""


def value_and_gradient(
    loss: Loss, theta: Params, names: Collection[str] | None = None, *, unused: Collection[str] = ()
) -> ValueAndGradient:
    """L(theta) and its gradient with respect to ``names`` (all by default); the other parameters are constants.

    A parameter that L does not depend on is an error, but for those in ``unused``, whose gradient is then zero.
    """
    if isinstance(loss, MeanLoss):
        return _mean_over_parts(loss, theta, names, unused)
    if isinstance(loss, SharedLoss):
        return _mean_over_processes(loss, theta, names, unused)
    at = leaves(theta, names)
    value = loss(at)
    return ValueAndGradient(value.detach(), gradient_of(value, at, unused=unused))


def hand_gradient(
    loss: Loss,
    theta: Params,
    take: Callable[[str, Tensor], None],
    names: Collection[str] | None = None,
    *,
    unused: Collection[str] = (),
) -> Tensor:
    """L(theta); its gradient is handed to ``take`` name by name, as the backward pass comes to each.

    The same numbers as :func:`value_and_gradient` gives, without a set of them, but for losses in parts or processes.
    """
    if isinstance(loss, MeanLoss | SharedLoss) or are_pieces(theta.values()):
        value, gradient = value_and_gradient(loss, theta, names, unused=unused)
        for name in list(gradient):
            take(name, gradient.pop(name))
        return value
    at = leaves(theta, names)
    wanted, taken = [name for name, p in at.items() if p.requires_grad], set[str]()

    def hand(name: str, p: Tensor) -> None:
        gradient, p.grad = p.grad, None
        if gradient is not None:
            taken.add(name)
            take(name, gradient)

    for name in wanted:
        at[name].register_post_accumulate_grad_hook(partial(hand, name))
    value = loss(at)
    _check_reaches(value)
    value.backward()
    missing = [name for name in wanted if name not in taken]
    _check_all_reached(missing, len(wanted), unused)
    for name in missing:
        take(name, torch.zeros_like(theta[name]))
    return value.detach()


def _mean_over_parts(
    loss: MeanLoss, theta: Params, names: Collection[str] | None, unused: Collection[str]
) -> ValueAndGradient:
    count = len(loss.parts)
    value, gradient = value_and_gradient(loss.parts[0], theta, names, unused=unused)

    def add_to(name: str, one: Tensor) -> None:
        gradient[name] = gradient[name] + one

    for part in loss.parts[1:]:
        value = value + hand_gradient(part, theta, add_to, names, unused=unused)
    scale_in_place(gradient, 1 / count)
    return ValueAndGradient(value / count, gradient)


def _mean_over_processes(
    loss: SharedLoss, theta: Params, names: Collection[str] | None, unused: Collection[str]
) -> ValueAndGradient:
    value, gradient = value_and_gradient(loss.own, theta, names, unused=unused)
    gradient = loss.average(gradient | {"": value})
    return ValueAndGradient(gradient.pop(""), gradient)


def leaves(theta: Params, names: Collection[str] | None = None) -> Params:
    """theta cut from any graph it came with; those in ``names`` (all by default) record a new one."""
    return {name: p.detach().requires_grad_(names is None or name in names) for name, p in theta.items()}


def gradient_of(value: Tensor, at: Params, *, create_graph: bool = False, unused: Collection[str] = ()) -> Params:
    """d ``value`` / d those of the leaves ``at`` that record a graph.

    One that ``value`` does not reach is an error, or zero when ``unused`` has its name.
    """
    inputs = {name: p for name, p in at.items() if p.requires_grad}
    _check_reaches(value)
    # allow_unused serves to learn the names of the unused, which torch's own error does not give.
    found = torch.autograd.grad(value, list(inputs.values()), create_graph=create_graph, allow_unused=True)
    gradient = dict(zip(inputs, found, strict=True))
    _check_all_reached([name for name, g in gradient.items() if g is None], len(inputs), unused)
    return {name: torch.zeros_like(inputs[name]) if g is None else g for name, g in gradient.items()}


def _check_reaches(value: Tensor) -> None:
    if not value.requires_grad:
        raise RunError("The loss does not depend on any parameter: it must use the dictionary it is given.")


def _check_all_reached(missing: Sequence[str], count: int, unused: Collection[str]) -> None:
    """RunError unless those of ``count`` parameters that a loss does not reach are all ``unused``."""
    apart = [name for name in missing if name not in unused]
    if apart:
        raise RunError(f"The loss does not depend on {len(apart)} of {count} parameters: {some_of(apart, 8)}.")


# --- Identity --------------------------------------------------------------------------------------------------------


def digest(a: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tensors' bytes, in the order of their names."""
    found = hashlib.sha256()
    for _, tensor in sorted(a.items()):
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def same(a: Params, b: Params) -> bool:
    """Whether both hold the same numbers, in the same precision."""
    pairs = zip(a.values(), _aligned(a, b), strict=True)
    differ = torch.tensor(float(any(x.dtype != y.dtype or not torch.equal(own(x), own(y)) for x, y in pairs)))
    return not summed(differ.to(own(next(iter(a.values()))).device), a.values())


def not_finite(module: nn.Module) -> list[str]:
    """The names of a network's parameters that hold numbers which are not finite."""
    return [name for name, p in module.named_parameters() if not bool(p.isfinite().all())]


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def add(a: Params, b: Params, alpha: float = 1.0) -> Params:
    """a + alpha b."""
    return named(a, torch._foreach_add(own_of(a), tuple(map(own, _aligned(a, b))), alpha=alpha))


def absorb(a: Params, b: Params, alpha: float = 1.0) -> Params:
    """a + alpha b, one name after the other out of ``b``, which is empty in the end: no third set is there."""
    _aligned(a, b)
    return named(a, [torch.add(own(a[name]), own(b.pop(name)), alpha=alpha) for name in a])


def accumulate(gradient: Params, term: Params, weight: float) -> None:
    """gradient += weight term, over the names of ``gradient``: one at a time, so that no second set of them is there.

    It multiplies and then adds, with a rounding at each; :func:`add` rounds once, which gives other bits.
    """
    for name in gradient:
        gradient[name] = gradient[name] + weight * term[name]


def scale(a: Params, s: float) -> Params:
    """s a."""
    return named(a, torch._foreach_mul(own_of(a), s))


def scale_in_place(a: Params, s: float) -> None:
    """a = s a, one name after the other, so that no second set of them is there."""
    for name in a:
        a[name] = a[name] * s


def own_of(a: Params, names: Iterable[str] | None = None) -> tuple[Tensor, ...]:
    """This process's pieces of ``a``, or of those of its ``names``."""
    return tuple(own(a[name]) for name in (a if names is None else names))


def named(like: Params, found: Iterable[Tensor]) -> Params:
    """What was worked out of each of this process's pieces of ``like``, by name, as pieces themselves."""
    return dict(zip(like, as_pieces(found, like.values()), strict=True))


def laid_out_like(p: Tensor, gradient: Tensor) -> Tensor:
    """``gradient``, its numbers in memory in the order of ``p``'s.

    A fused AdamW goes through both in memory's order, and the gradient of a convolution may have its channels last.
    """
    return gradient if gradient.stride() == p.stride() else torch.empty_like(p).copy_(gradient)


def dot(a: Params, b: Params) -> float:
    """<a, b>, summed over parameters in float64."""
    pairs = zip(map(own, a.values()), map(own, _aligned(a, b)), strict=True)
    products = [torch.linalg.vecdot(x.flatten(), y.flatten()) for x, y in pairs]
    return float(summed(torch.stack([p.double() for p in products]).sum(), a.values()))


def norm(a: Params) -> float:
    """||a||, accumulated in float64: a float32 direction of norm 1e-30 is not zero."""
    lengths = torch.stack(torch._foreach_norm(own_of(a), 2, dtype=torch.float64))
    if are_pieces(a.values()):
        return math.sqrt(float(summed(lengths.square().sum(), a.values())))
    return math.hypot(*lengths.tolist())


def moved_average(average: Params, theta: Mapping[str, Tensor], decay: float) -> Params:
    """decay average + (1 - decay) theta, over the names of ``average``; bitwise ``average`` where both agree."""
    # lerp's form, average + (1 - decay) (theta - average), is what keeps equal values equal.
    return {name: torch.lerp(value, theta[name].detach(), 1 - decay) for name, value in average.items()}


def _aligned(a: Params, b: Params) -> list[Tensor]:
    """The tensors of ``b`` in the order of ``a``."""
    if a.keys() != b.keys():
        raise KeyError(f"parameter dictionaries differ in {sorted(a.keys() ^ b.keys())[:8]}")
    return [b[name] for name in a]
