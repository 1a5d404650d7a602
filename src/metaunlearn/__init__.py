"""Erase concepts from text-to-image diffusion models so that they stay erased.

The public names, imported when they are first used: ``import metaunlearn`` alone loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaunlearn.attacking import AttackResult, attack
    from metaunlearn.attacking_prompts import attack_prompts
    from metaunlearn.attacking_search import search_attacks
    from metaunlearn.attacks.success import judge_sees
    from metaunlearn.bars import ProgressBars
    from metaunlearn.comparing import compare
    from metaunlearn.data.prompts import Prompt
    from metaunlearn.delta import apply_delta, make_delta
    from metaunlearn.erasing import EraseResult, erase
    from metaunlearn.errors import RunError, UserError
    from metaunlearn.evaluating_pictures import evaluate_pictures
    from metaunlearn.evaluation import evaluate
    from metaunlearn.exporting import export
    from metaunlearn.generation import generate_images
    from metaunlearn.making import make_set
    from metaunlearn.metrics.judge import load_judge
    from metaunlearn.models import load
    from metaunlearn.report.page import build_report
    from metaunlearn.story import demo
    from metaunlearn.tuning.run import tune

__version__ = "0.1.0"

__all__ = [
    "AttackResult",
    "EraseResult",
    "ProgressBars",
    "Prompt",
    "RunError",
    "UserError",
    "__version__",
    "apply_delta",
    "attack",
    "attack_prompts",
    "build_report",
    "compare",
    "demo",
    "erase",
    "evaluate",
    "evaluate_pictures",
    "export",
    "generate_images",
    "judge_sees",
    "load",
    "load_judge",
    "make_delta",
    "make_set",
    "search_attacks",
    "tune",
]

_HOMES = {
    "AttackResult": "metaunlearn.attacking",
    "EraseResult": "metaunlearn.erasing",
    "ProgressBars": "metaunlearn.bars",
    "Prompt": "metaunlearn.data.prompts",
    "RunError": "metaunlearn.errors",
    "UserError": "metaunlearn.errors",
    "apply_delta": "metaunlearn.delta",
    "attack": "metaunlearn.attacking",
    "attack_prompts": "metaunlearn.attacking_prompts",
    "build_report": "metaunlearn.report.page",
    "compare": "metaunlearn.comparing",
    "demo": "metaunlearn.story",
    "erase": "metaunlearn.erasing",
    "evaluate": "metaunlearn.evaluation",
    "evaluate_pictures": "metaunlearn.evaluating_pictures",
    "export": "metaunlearn.exporting",
    "generate_images": "metaunlearn.generation",
    "judge_sees": "metaunlearn.attacks.success",
    "load": "metaunlearn.models",
    "load_judge": "metaunlearn.metrics.judge",
    "make_delta": "metaunlearn.delta",
    "make_set": "metaunlearn.making",
    "search_attacks": "metaunlearn.attacking_search",
    "tune": "metaunlearn.tuning.run",
}
"""Where each public name lives. None of them may be a submodule's name: importing it would hide the function."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
