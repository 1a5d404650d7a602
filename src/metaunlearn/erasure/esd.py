"""ESD, Erased Stable Diffusion (Gandikota et al., ICCV 2023): steer the concept's prediction away from the concept."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from metaunlearn.errors import UserError
from metaunlearn.parameters import SUBSETS

NAME = re.compile(rf"esd-({'|'.join(SUBSETS)})-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class EsdMethod:
    """A member of the family, named ``esd-SUBSET-ETA``."""

    subset: str
    """Which parameters are trained."""
    eta: float
    """How far past the unconditional prediction the target lies; at least 0."""

    @classmethod
    def parse(cls, name: str) -> EsdMethod:
        """``"esd-u-1"`` → subset u, eta 1."""
        match = NAME.fullmatch(name)
        if match is None:
            raise UserError(
                f"unknown method {name!r}; ESD is named esd-SUBSET-ETA with SUBSET one of {', '.join(SUBSETS)}, "
                "e.g. esd-u-1 (method=..., --method NAME)."
            )
        return cls(subset=match[1], eta=float(match[2]))


def esd_target(unconditional: Tensor, conditional: Tensor, eta: float) -> Tensor:
    """ESD Eq. 6: eps_0(∅) - eta (eps_0(c) - eps_0(∅)), all from the frozen teacher; shape of its arguments."""
    return unconditional - eta * (conditional - unconditional)
