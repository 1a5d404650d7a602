"""Weights that metrics of a grid bring with them, by the name under which ``--use NAME=PATH`` gives them.

A recipe names no files: of ``fid:FILE@WAY`` it says ``fid:inception@WAY``.
"""

from __future__ import annotations

from collections.abc import Iterable

from metaunlearn.errors import UserError
from metaunlearn.metrics.registry import reads

INCEPTION = "inception"
DISTANCES = ("fid", "kid")
OF_METRICS = ("unsafe", "nsfw")
"""Metrics whose weights have the metric's own name."""
WEIGHTS = (*OF_METRICS, INCEPTION)


def weights_of(metric: str) -> str | None:
    """The name of the weights of ``metric``, written as ``evaluate --metrics`` has it; None where it has none.

    UserError where it names a file.
    """
    name, _, variant = metric.partition(":")
    if name not in DISTANCES or not variant:
        return name if name in OF_METRICS else None
    weights, _, way = variant.partition("@")
    if weights != INCEPTION:
        inception = f"{name}:{INCEPTION}" + (f"@{way}" if way else "")
        raise UserError(
            f"a recipe names no files of weights, got {metric!r} (scores): write {inception!r}, and give the file with "
            f"--use {INCEPTION}=FILE."
        )
    return INCEPTION


def with_weights(metric: str, path: str) -> str:
    """``metric`` with the ``path`` of its weights; as it is where it finds them itself."""
    if not path:
        return metric
    name, _, variant = metric.partition(":")
    way = variant.partition("@")[2] if name in DISTANCES else ""
    return f"{name}:{path}" + (f"@{way}" if way else "")


def path_in(given: str, metric: str) -> str:
    """The path that :func:`with_weights` put into ``metric`` to make ``given``; empty where it put none."""
    name, _, variant = metric.partition(":")
    way = variant.partition("@")[2] if name in DISTANCES else ""
    return "" if given == metric else given.removeprefix(f"{name}:").removesuffix(f"@{way}" if way else "")


def packages_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """Packages that run the networks of ``metrics`` and nothing else of ours; each once."""
    return ("onnxruntime",) if any(metric.partition(":")[0] == "nudity" for metric in metrics) else ()


def asks_judge(metric: str) -> bool:
    """Whether ``metric`` is seen by the grid's judge, and not by a network of its own."""
    return reads(metric.partition(":")[0], "--judge") and weights_of(metric) != INCEPTION
