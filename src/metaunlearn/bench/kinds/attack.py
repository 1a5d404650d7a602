"""One attack on an erased model: what it leaves after each of the steps, or at each strength, that is asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from metaunlearn.attacking import attack
from metaunlearn.attacks.registry import strengths_of
from metaunlearn.fetching import SAMPLING_FILE
from metaunlearn.models.state import load_state
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import Progress

INDEX_FILE = "model_index.json"


def make(
    folder: Path,
    *,
    erase: Path,
    kind: str,
    levels: Sequence[float],
    recipe: str,
    overrides: Sequence[str],
    seed: int,
    device: str,
    progress: Progress | None,
    data: Path | None = None,
    base: str | None = None,
    donor: Path | None = None,
    donor_is: Sequence[str] = (),
    warm: Path | None = None,
    warm_at: str = "",
) -> None:
    """``folder/step-000010`` and so on: the components that the attack changes, or pictures.

    With ``warm``, another attack's cell, the attacker goes on from what that one left in ``warm_at``. ``base`` is the
    model before the erasing, and ``donor`` the cell of what was trained on it, where the kind brings
    that: ``donor_is`` the setting that names it, and what it is called there.
    """
    trains = strengths_of(kind) is None
    result = attack(
        load_state(str(erase), None, warm, warm_at),
        data,
        kind=kind,
        steps=[int(level) for level in levels] if trains else None,
        strengths=None if trains else levels,
        base=base,
        recipe=recipe,
        overrides=[*overrides, *([] if donor is None else [f"{donor_is[0]}={donor / donor_is[1]}"])],
        shared_overrides=True,
        seed=seed,
        device=device,
        out=folder,
        resume=(folder / RUN_FILE).exists(),
        progress=progress,
    )
    checkpoints = {path.name for path in result.checkpoints.values()}
    changed = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["changed"]
    for entry in folder.iterdir():
        if entry.name in checkpoints:
            if (entry / INDEX_FILE).exists():
                _remove([part for part in entry.iterdir() if part.name not in changed])
        elif entry.suffix not in (".json", ".jsonl"):
            _remove([entry])
    (folder / INDEX_FILE).unlink(missing_ok=True)
    (folder / SAMPLING_FILE).unlink(missing_ok=True)


def _remove(entries: Sequence[Path]) -> None:
    for entry in entries:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
