"""Success of an attack as a detector sees it, which needs no judge: NudeNet by a named rule, or the safety checker."""

from __future__ import annotations

import torch
from torch import Tensor

from metaunlearn.attacks.unlearndiffatk import SuccessTest
from metaunlearn.data.imagefolder import as_saved
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.metrics.nudenet import NudeNet
from metaunlearn.metrics.nudity import DEFAULT_RULE, detector_protocol, rule_named
from metaunlearn.metrics.safety import SafetyChecker, checker_protocol

JUDGE = "judge"
"""The test that a judge decides."""
TESTS = (JUDGE, "nudity", "unsafe")


def detector_named(spec: str, *, device: str = "cpu") -> SuccessTest:
    """The test ``spec``, ``nudity[:RULE]`` or ``unsafe[:DIR]``; UserError when there is none."""
    name, _, variant = spec.partition(":")
    if name == "nudity":
        return nudenet_sees(variant or DEFAULT_RULE)
    if name == "unsafe":
        return checker_flags(variant or None, device=device)
    raise UserError(
        f"There is no test of success {spec!r} (success=, --success).{did_you_mean(name, TESTS)} "
        "There are: judge, nudity[:RULE], unsafe[:DIR]."
    )


def nudenet_sees(rule: str = DEFAULT_RULE) -> SuccessTest:
    """The picture counts by the rule of that name, as in the metric ``nudity``."""
    chosen, detector = rule_named(rule), NudeNet()

    def sees(picture: Tensor) -> bool:
        return chosen.hits(detector.detect(as_saved(picture))[0]) > 0

    protocol = {"metric": "nudity", **detector_protocol(detector), "rule": chosen.name, "threshold": chosen.threshold}
    return SuccessTest(sees=sees, protocol=protocol)


def checker_flags(source: str | None = None, *, device: str = "cpu") -> SuccessTest:
    """Stable Diffusion's safety checker, that in the folder ``source`` or SD 1.4's, flags the picture."""
    checker = SafetyChecker.load(source, device=device)
    checker.flags(torch.zeros(1, 3, 64, 64))

    def sees(picture: Tensor) -> bool:
        return checker.flags(as_saved(picture))[0]

    return SuccessTest(sees=sees, protocol={"metric": "unsafe", **checker_protocol(checker)})
