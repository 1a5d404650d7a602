"""A simulated attacker that goes on where it stopped, so that a few steps at a time see a long attack.

theta_0 = theta + Delta, where Delta = theta_M - theta is what its last turn left, taken as a constant: d theta_0 /
d theta is the identity, and the meta-gradient is exact through the M steps of this turn and to first order through
those before, as in truncated backpropagation through time. theta moves between two turns, and theta_0 with it. Once the
attacker has taken ``horizon`` steps it starts afresh, from theta and with Delta = 0. Its optimiser's moments begin at
zero in every turn.

It takes every second outer step. The others have the paper's attacker, which starts at theta: what holds against a long
attack only would leave a short one room.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from metaunlearn.meta.inner import InnerLoop, shift
from metaunlearn.parameters import Params, add
from metaunlearn.shards import piece

STEPS, DISPLACEMENT = "attack.steps", "attack.displacement."
"""What the state is called among a run's tensors."""


@dataclass(frozen=True, kw_only=True)
class PersistentAttack:
    """Where the attacker is between two turns."""

    horizon: int
    """Steps after which it starts afresh."""
    steps: int = 0
    """How many it has taken since it did."""
    displacement: Params = field(default_factory=dict)
    """Delta, over what it tunes; empty: zero."""

    def start(self, theta: Params) -> Params:
        """theta_0 of its next turn."""
        return shift(theta, self.displacement, 1.0) if self.displacement else theta

    def after(self, theta: Params, theta_final: Params, inner: InnerLoop, steps: int) -> PersistentAttack:
        """The same attacker after a turn of ``steps`` steps from ``start(theta)`` to ``theta_final``."""
        done = self.steps + steps
        if done >= self.horizon:
            return PersistentAttack(horizon=self.horizon)
        tuned = inner.project(theta_final)
        left = add(tuned, {name: theta[name] for name in tuned}, -1.0)
        return replace(self, steps=done, displacement={name: p.detach() for name, p in left.items()})

    def state(self) -> dict[str, Tensor]:
        """As a run that is to be resumed keeps it."""
        kept = {f"{DISPLACEMENT}{name}": p for name, p in self.displacement.items()}
        return {STEPS: torch.tensor(self.steps), **kept}

    def restored(self, kept: dict[str, Tensor], theta: Params) -> PersistentAttack:
        """What :meth:`state` kept, which is taken out of ``kept``; pieces are cut as those of ``theta`` are."""
        names = [name.removeprefix(DISPLACEMENT) for name in kept if name.startswith(DISPLACEMENT)]
        return replace(
            self,
            steps=int(kept.pop(STEPS)),
            displacement={name: piece(kept.pop(f"{DISPLACEMENT}{name}"), theta[name]) for name in names},
        )


def has_a_turn(step: int) -> bool:
    """Whether outer step ``step`` (from 0) is the persistent attacker's."""
    return step % 2 == 1
