"""What counts as success of an attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metaunlearn.attacks.unlearndiffatk import SuccessTest
from metaunlearn.data.imagefolder import as_saved
from metaunlearn.metrics.concept import concept_score, default_choices
from metaunlearn.metrics.judge import Judge


def judge_sees(judge: Judge, concept: str, alternatives: Sequence[str] = ()) -> SuccessTest:
    """The judge sees ``concept`` and none of its alternatives: the rule of ``evaluate``'s metric ``concept``.

    Without ``alternatives`` they are the other labels that the judge knows, as there.
    """
    others = list(alternatives) or default_choices(judge, [concept])[1:]
    probe = concept_score(judge, torch.zeros(1, 3, 64, 64), concept, others)

    def sees(picture: Tensor) -> bool:
        return concept_score(judge, as_saved(picture), concept, others).raw[0]["saw"] == concept

    decided_by = ("judge", "judge_weights", "wording", "rule", "choices", "concept")
    return SuccessTest(sees=sees, protocol={key: probe.protocol[key] for key in decided_by})
