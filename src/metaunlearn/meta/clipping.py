r"""An attacker that clips its gradients, and the way back through that.

    g'_m = c g_m,   c = min(1, R / (||g_m|| + 1e-6)),   R = ``max_norm``: torch's ``clip_grad_norm_``

and g'_m goes to the optimiser in place of g_m. Where c < 1 it depends on g_m too: with s = ||g_m||, u = g_m / s and d'
the adjoint of g'_m,

    d = c [d' - (s / (s + 1e-6)) <u, d'> u]
"""

from __future__ import annotations

from dataclasses import dataclass

from metaunlearn.errors import UserError
from metaunlearn.meta.optimizers import State, Step, StepAdjoint, UpdateRule
from metaunlearn.meta.store import Sets
from metaunlearn.parameters import Params, add, dot, norm, scale

MARGIN = 1e-6
"""torch's, against a division by zero."""


@dataclass(frozen=True)
class Clipped:
    """``rule`` on clipped gradients."""

    rule: UpdateRule
    max_norm: float
    """R, above 0: the norm over all parameters that the attacker tunes."""

    needs_gradients = True

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise UserError(
                "The inner gradient's norm (max_norm, --set inner_max_gradient_norm=...) must be above 0; "
                f"got {self.max_norm!r}."
            )

    @property
    def weight_decay(self) -> float:
        """That of the clipped rule."""
        return self.rule.weight_decay

    def start(self, tuned: Params) -> State:
        """The state in which the clipped rule starts."""
        return self.rule.start(tuned)

    def step(self, theta: Params, state: State, gradient: Params, m: int, learning_rate: float) -> Step:
        """The rule's step on g'_m."""
        return self.rule.step(theta, state, self.clip(gradient), m, learning_rate)

    def pull_back(self, v: Params, w: State, gradients: Sets) -> StepAdjoint:
        """The rule's way back, then the clipping's."""
        direction, w = self.rule.pull_back(v, w, _ClippedSets(gradients, self, v))
        g = {name: gradients[-1][name] for name in v}
        s = norm(g)
        c = self.factor(s)
        if c == 1:
            return StepAdjoint(direction, w)
        along = dot(g, direction) / (s * (s + MARGIN))
        return StepAdjoint(scale(add(direction, g, -along), c), w)

    def clip(self, gradient: Params) -> Params:
        """g'_m."""
        c = self.factor(norm(gradient))
        return gradient if c == 1 else scale(gradient, c)

    def factor(self, s: float) -> float:
        """c."""
        return min(1.0, self.max_norm / (s + MARGIN))


class _ClippedSets:
    """The kept gradients as the rule saw them: clipped when they are looked at, one at a time."""

    def __init__(self, gradients: Sets, clipped: Clipped, tuned: Params) -> None:
        self._gradients, self._clipped, self._tuned = gradients, clipped, tuned

    def __getitem__(self, index: int) -> Params:
        gradient = self._gradients[index]
        return self._clipped.clip({name: gradient[name] for name in self._tuned})

    def __len__(self) -> int:
        return len(self._gradients)
