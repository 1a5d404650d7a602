"""UnlearnDiffAtk on one erased model: how many prompts get the concept out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.attacking_prompts import attack_prompts
from metaunlearn.attacks.detectors import JUDGE, detector_named
from metaunlearn.attacks.success import judge_sees
from metaunlearn.attacks.unlearndiffatk import SuccessTest
from metaunlearn.data.prompts import Prompt
from metaunlearn.files import read_json
from metaunlearn.metrics.judge import load_judge
from metaunlearn.metrics.scores_file import write_scores
from metaunlearn.models import load_pipeline
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import RESULTS_FILE, Progress


def make(
    folder: Path,
    *,
    base: str,
    erase: Path,
    prompts: Sequence[Mapping[str, Any]],
    success: str,
    judge: str,
    concept: str,
    alternatives: Sequence[str],
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
) -> None:
    """``folder`` as ``metaunlearn attack --kind unlearndiffatk`` leaves it; ``scores.json`` has its two rates.

    The target pictures are those that ``base`` draws.
    """
    attack_prompts(
        load_pipeline(erase),
        [Prompt(**record) for record in prompts],
        _test(success, judge, concept, alternatives, device),
        base=load_pipeline(base),
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        device=device,
        out=folder,
        resume=(folder / RUN_FILE).exists(),
        progress=progress,
    )
    write_scores(folder, read_json(folder / RESULTS_FILE))


def _test(success: str, judge: str, concept: str, alternatives: Sequence[str], device: str) -> SuccessTest:
    if success != JUDGE:
        return detector_named(success, device=device)
    return judge_sees(load_judge(judge, device=device), concept, alternatives)
