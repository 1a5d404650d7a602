"""The batches of one outer step of Algorithm 1: what is drawn, and how it is cut into micro-batches.

B: ``batch_size``. K: ``accumulation``, the micro-batches of an outer step. Whatever is evaluated outside the simulated
finetuning has K B pictures, whose K parts are alike in size and in their share of related pictures; so the mean over
the whole batch is the mean of the parts' means. The attacker's own batches have B pictures. Several processes share
each of these parts, and the attacker's batches, evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaunlearn.config import Attacker, EraseSettings
from metaunlearn.data.latents import ErasureData, LatentSet
from metaunlearn.data.sampling import Sampler
from metaunlearn.diffusion import Batch, draw_timesteps, joined, part
from metaunlearn.erasure.interface import ForgetBatch
from metaunlearn.processes import Processes


@dataclass(frozen=True)
class RetainBatch:
    """Retained pictures, the related ones before the unrelated ones."""

    batch: Batch
    related: int
    """How many are related."""
    weights: Tensor | None = None
    """(B,) what each picture weighs in L_retain (``retain_weighting``); None: all weigh the same."""

    def own(self, processes: Processes, count: int) -> Sequence[RetainBatch]:
        """This process's rows, in ``count`` micro-batches."""
        return self.parts(count * processes.count)[processes.number :: processes.count]

    def parts(self, count: int) -> list[RetainBatch]:
        """``count`` batches of the same size, with equal shares of either kind where both can be shared out evenly."""
        size, others = len(self.batch.t) // count, len(self.batch.t) - self.related
        if not self.related or not others or self.related % count or others % count:
            return [self._rows(k * size, (k + 1) * size) for k in range(count)]
        a, b = self.related // count, others // count
        return [
            self._rows(k * a, (k + 1) * a).followed_by(self._rows(self.related + k * b, self.related + (k + 1) * b))
            for k in range(count)
        ]

    def followed_by(self, unrelated: RetainBatch) -> RetainBatch:
        """These, which are related or none, and unrelated ones."""
        weights = None
        if self.weights is not None and unrelated.weights is not None:
            weights = torch.cat([self.weights, unrelated.weights])
        return RetainBatch(joined(self.batch, unrelated.batch), self.related, weights)

    def _rows(self, first: int, end: int) -> RetainBatch:
        weights = None if self.weights is None else self.weights[first:end]
        return RetainBatch(part(self.batch, first, end), min(max(self.related - first, 0), end - first), weights)


def _cut(batch: Batch, count: int) -> list[Batch]:
    """``count`` batches of the same size."""
    size = len(batch.t) // count
    return [part(batch, i * size, (i + 1) * size) for i in range(count)]


@dataclass(frozen=True)
class OuterDraw:
    """The batches of one outer step."""

    forget: ForgetBatch | None
    """L_forget; None in the second stage of a closed-form method."""
    retain: RetainBatch
    """Half related, half unrelated, or one kind and then the other where B = 1: L_retain of Eq. 1."""
    meta_retain: RetainBatch
    """D_retain of Eq. 3, at theta_M."""
    direct: RetainBatch
    """D_retain of Eq. 3, at theta: ``meta_retain`` itself, noise and timesteps included (common random numbers), or
    the same pictures with other noise at other timesteps."""
    inner: tuple[Batch, ...]
    """D_FT for the M simulated finetuning steps."""
    outer: Batch
    """D_FT at theta_M."""

    def own(self, processes: Processes, count: int) -> Sequence[OuterDraw]:
        """This process's rows of everything, in ``count`` micro-batches."""
        parts = self.parts(count * processes.count)[processes.number :: processes.count]
        inner = tuple(_cut(batch, processes.count)[processes.number] for batch in self.inner)
        return parts if processes.count == 1 else [replace(part, inner=inner) for part in parts]

    def parts(self, count: int) -> Sequence[OuterDraw]:
        """``count`` micro-batches; the attacker's batches are in all of them. Batches that are one stay one."""
        if count == 1:
            return [self]
        distinct = {id(kept): kept for kept in (self.retain, self.meta_retain, self.direct)}
        kept = {key: batch.parts(count) for key, batch in distinct.items()}
        forget: Sequence[ForgetBatch | None] = [None] * count
        if self.forget is not None:
            forget = [ForgetBatch(*values) for values in zip(*(x.chunk(count) for x in self.forget), strict=True)]
        outer = _cut(self.outer, count)
        return [
            OuterDraw(
                forget=forget[k],
                retain=kept[id(self.retain)][k],
                meta_retain=kept[id(self.meta_retain)][k],
                direct=kept[id(self.direct)][k],
                inner=self.inner,
                outer=outer[k],
            )
            for k in range(count)
        ]


def draw_attacker(attackers: Sequence[Attacker], generator: torch.Generator) -> Attacker:
    """One of ``attackers``, each as likely as the others; an only one leaves ``generator`` as it is."""
    if len(attackers) == 1:
        return attackers[0]
    return attackers[int(torch.randint(len(attackers), (), generator=generator))]


def inner_batches_before(settings: EraseSettings, step: int, generator_of: Callable[[int], torch.Generator]) -> int:
    """How many batches the attackers of the steps before ``step`` have had: what their draws say."""
    attackers = settings.simulated
    if len({attacker.steps for attacker in attackers}) == 1:
        return step * attackers[0].steps
    if settings.replacement:  # Nobody counts them.
        return 0
    return sum(draw_attacker(attackers, generator_of(earlier)).steps for earlier in range(step))


def draw(
    data: ErasureData,
    settings: EraseSettings,
    attacker: Attacker,
    generator: torch.Generator,
    forget: ForgetBatch | None,
    *,
    sampler: Sampler,
    step: int,
    inner_before: int,
) -> OuterDraw:
    """The batches of outer step ``step`` against ``attacker``; ``forget`` is the method's own.

    ``inner_before`` is how many batches the simulated attackers of the earlier steps have had.
    """
    size, parts, stratified = settings.batch_size, settings.accumulation, settings.stratified

    def batch(role: str, use: str, count: int, turn: int = step) -> Batch:
        chosen: LatentSet = getattr(data, role)
        rows = sampler(f"{role} {use}", turn, len(chosen), count, generator)
        return chosen.batch(rows, generator, stratified=stratified)

    retain = draw_retained(data, settings, generator, sampler=sampler, step=step)
    meta_retain = retain
    if settings.meta_retain != "both":
        # As many as in ``retain``, but a stream of its own: without replacement either goes through its set.
        only = batch(settings.meta_retain, "meta", size * parts)
        meta_retain = RetainBatch(only, size * parts if settings.meta_retain == "related" else 0)
    inner = tuple(batch("forget", "inner", size, inner_before + m) for m in range(attacker.steps))
    outer = batch("forget", "outer", size * parts)
    direct = meta_retain
    if not settings.common_noise:
        direct = RetainBatch(_with_other_noise(meta_retain.batch, data, generator, stratified), meta_retain.related)
    return OuterDraw(forget=forget, retain=retain, meta_retain=meta_retain, direct=direct, inner=inner, outer=outer)


def draw_retained(
    data: ErasureData, settings: EraseSettings, generator: torch.Generator, *, sampler: Sampler, step: int
) -> RetainBatch:
    """The retained pictures of outer step ``step``: half related, half unrelated."""
    size, parts = settings.batch_size, settings.accumulation

    def kept(role: str, count: int, turn: int) -> RetainBatch:
        chosen: LatentSet = getattr(data, role)
        rows = sampler(f"{role} retain", turn, len(chosen), count, generator)
        weights = None if chosen.weights is None else chosen.weights[rows]
        batch = chosen.batch(rows, generator, stratified=settings.stratified)
        return RetainBatch(batch, count if role == "related" else 0, weights)

    if size == 1:  # There is no half of one: the two kinds take turns.
        related, unrelated, turn = (parts, 0, step // 2) if step % 2 == 0 else (0, parts, step // 2)
    else:
        related, unrelated, turn = size // 2 * parts, (size - size // 2) * parts, step
    return kept("related", related, turn).followed_by(kept("unrelated", unrelated, turn))


def _with_other_noise(batch: Batch, data: ErasureData, generator: torch.Generator, stratified: bool) -> Batch:
    count, timesteps, device = len(batch.t), data.forget.timesteps, batch.t.device
    return batch._replace(
        eps=torch.randn(batch.eps.shape, generator=generator).to(device),
        t=draw_timesteps(count, timesteps, generator, stratified=stratified).to(device),
    )
