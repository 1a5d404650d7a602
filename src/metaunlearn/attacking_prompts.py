"""``attack --kind unlearndiffatk``: attack the prompts that reach a model; how many get the concept out of it?

Each prompt's outcome is a file of its own, so that a killed run goes on at the prompt where it stopped, and so that
several processes share the work: each of N shards takes every N-th row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metaunlearn.asked import asked_differently, in_words
from metaunlearn.attacks import ON_PROMPTS
from metaunlearn.attacks.registry import configure
from metaunlearn.attacks.targets import Targets, targets_of
from metaunlearn.attacks.unlearndiffatk import (
    Attempt,
    Outcome,
    PromptAttack,
    SuccessTest,
    UnlearnDiffAtk,
    check_one_vocabulary,
)
from metaunlearn.data.prompts import PromptsGiven, prompts_of
from metaunlearn.devices import check_device
from metaunlearn.draws import Draw, draws_for
from metaunlearn.errors import UserError
from metaunlearn.evaluation import ranges
from metaunlearn.files import path_of, read_json, write_atomic, write_json
from metaunlearn.generation import default_sampling
from metaunlearn.metrics.intervals import score, wilson
from metaunlearn.models import adapt, device_for, read_only
from metaunlearn.overrides import Overrides, as_overrides
from metaunlearn.pipelines import save_image
from metaunlearn.recipe import read_recipe, recipe_for
from metaunlearn.records import RUN_FILE
from metaunlearn.runs import RESULTS_FILE, Progress, RunFolder, named
from metaunlearn.settings import whole_number
from metaunlearn.sharing import Shard

ROWS = "attacks.jsonl"


def attack_prompts(
    model: Any,
    prompts: PromptsGiven,
    success: SuccessTest,
    *,
    base: Any = None,
    data: Path | str | None = None,
    recipe: Path | str | None = None,
    overrides: Overrides = (),
    seed: int = 0,
    shard: str = "1/1",
    device: str | torch.device | None = None,
    out: Path | str,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """UnlearnDiffAtk on every prompt; returns the summary.

    The target picture of a prompt is what ``base``, the model before the erasing, draws for it, or the picture in the
    imagefolder ``data`` that has the prompt as its caption. ``success`` decides what counts as the concept:
    :func:`~metaunlearn.attacks.success.judge_sees`, or a test of one's own. A prompt's own seed and guidance are used,
    else ``seed`` plus its number and the model's.

    ``out`` gets ``attacks.jsonl`` (a line for each prompt), ``pictures/`` and ``results.json``: the attack success rate
    (ASR) in percent with and without the attack, lower being better for the eraser; with several shards once the last
    of them is done. ``device`` is as for :func:`~metaunlearn.erasing.erase`.
    """
    data, out = path_of(data), path_of(out)
    part, device = Shard.parse(shard), check_device(device_for(model, device))
    prompts, seed = prompts_of(prompts), whole_number(seed, "seed=, --seed")
    adapter = adapt(read_only(model, device=device), device)
    check_one_vocabulary(adapter)
    recipe = str(recipe or recipe_for(adapter))
    settings: UnlearnDiffAtk = configure(ON_PROMPTS, read_recipe(recipe), as_overrides(overrides)).kind
    if not prompts:
        raise UserError("no rate from no prompts: expected at least one (prompts=, --prompts FILE), got none.")
    targets = targets_of(adapter, base, data, [prompt.text for prompt in prompts])
    guidance = default_sampling(adapter.pipeline).guidance_scale
    draws = draws_for(prompts, images=1, seed=seed, guidance_scale=guidance)
    run = PromptAttack(adapter, settings, success)
    skipped = [index for index, draw in enumerate(draws) if run.skips(draw.text)]
    if len(skipped) == len(draws):
        raise UserError(f"all {len(draws)} prompts (--prompts) have more tokens than the attack takes.")
    protocol = {
        "metric": "attack success rate", "attack": ON_PROMPTS, "unit": "percent of prompts", "seed": seed,
        "settings": settings.model_dump(mode="json"), "sampling_steps": run.sampling_steps,
        "seeds": ranges([draw.seed for draw in draws]),
        "prompts": _digest([[draw.text, draw.guidance_scale] for draw in draws]), "skipped": len(skipped),
        "target": targets.description, "success": dict(success.protocol), "interval": "Wilson",
    }  # fmt: skip
    request = {
        "command": "attack", "kind": ON_PROMPTS,
        "model": named(model),
        "weights": adapter.fingerprint(), "recipe": recipe, "shard": [part.number, part.count], "protocol": protocol,
    }  # fmt: skip
    _check_shared(out, part, request)
    folder = RunFolder.open(_folder(out, part), request, resume=resume, alone=True)
    if not folder.complete_before:
        with folder.alone():
            mine = [index for index in part.turns(len(draws)) if index not in skipped]
            _attack_rows(run, targets, draws, mine, folder, seed, progress)
            folder.finish(kind=ON_PROMPTS, prompts=len(mine))
    return {"out": str(out), **_join(out, part, protocol)}


def _attack_rows(
    run: PromptAttack,
    targets: Targets,
    draws: Sequence[Draw],
    rows: Sequence[int],
    folder: RunFolder,
    seed: int,
    progress: Progress | None,
) -> None:
    """Attack these rows, each until its file lies in the run's folder."""
    done = [index for index in rows if _file(folder.path, index).exists()]
    folder.truncate_log(len(done))
    for number, index in enumerate(rows, start=1):
        if index not in done:

            def on_attempt(attempt: Attempt, number: int = number, index: int = index) -> None:
                folder.log({"step": number, "prompt": index, **asdict(attempt)})

            outcome = run.run(draws[index], targets.latent(draws[index]), seed=seed, index=index, on_attempt=on_attempt)
            picture = folder.path / "pictures" / f"{index:06d}.png"
            save_image(picture, outcome.picture[0])
            write_json(_file(folder.path, index), _row(index, draws[index], outcome, picture.name))
        if progress is not None:
            progress("attacking prompts", number, len(rows))


def _row(index: int, draw: Draw, outcome: Outcome, picture: str) -> dict[str, Any]:
    return {
        "index": index, "prompt": draw.text, "seed": draw.seed, "guidance_scale": draw.guidance_scale,
        "success_before": outcome.before, "success": outcome.success, "text": outcome.attempts[-1].text,
        "pictures": len(outcome.attempts), "last_picture": picture,
    }  # fmt: skip


def _file(folder: Path, index: int) -> Path:
    return folder / "prompts" / f"{index:06d}.json"


def _folder(out: Path, part: Shard) -> Path:
    """Where ``part`` works: ``out`` itself when there is no other."""
    return out if part.count == 1 else out / f"shard-{part.number}-of-{part.count}"


def _folders(out: Path, count: int) -> list[Path]:
    return [_folder(out, Shard(number, count)) for number in range(1, count + 1)]


def _check_shared(out: Path, part: Shard, request: dict[str, Any]) -> None:
    """A folder that several shards share holds them and what they make together, and all were asked for alike."""
    if part.count == 1 or not out.is_dir():
        return
    ours = {RESULTS_FILE, ROWS, *(folder.name for folder in _folders(out, part.count))}
    others = sorted(path.name for path in out.iterdir() if path.name not in ours)
    if others:
        raise UserError(
            f"the output folder {out} holds something other than shards of {part.count} ({others[0]}); "
            "choose another (out=..., --out DIR)."
        )
    wanted = {**json.loads(json.dumps(request)), "shard": None}
    for file in sorted(out.glob(f"shard-*/{RUN_FILE}")):
        theirs = {**read_json(file)["request"], "shard": None}
        if asked_differently(theirs, wanted):
            raise UserError(
                f"{file.parent} was asked for differently {in_words(theirs, wanted)}. Shards count together: "
                "give all the same options, or choose another folder (out=..., --out DIR)."
            )


def _join(out: Path, part: Shard, protocol: dict[str, Any]) -> dict[str, Any]:
    """Write ``results.json`` and ``attacks.jsonl`` from all shards, if all are complete; return the summary."""
    folders = _folders(out, part.count)
    waiting = [folder.name for folder in folders if not _complete(folder)]
    if waiting:
        return {"kind": ON_PROMPTS, "waiting_for": waiting}
    rows = [read_json(file) for folder in folders for file in (folder / "prompts").glob("*.json")]
    rows.sort(key=lambda row: row["index"])
    before = sum(row["success_before"] for row in rows)
    after = sum(row["success"] for row in rows)
    scores = {
        "asr": score(wilson(after, len(rows)), protocol=protocol),
        "asr_without_attack": score(wilson(before, len(rows)), protocol={**protocol, "attack": "none"}),
    }
    write_atomic(out / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    results = {name: found.to_dict() for name, found in scores.items()}
    write_json(out / RESULTS_FILE, results)
    return {"kind": ON_PROMPTS, "results": results}


def _complete(folder: Path) -> bool:
    file = folder / RUN_FILE
    return file.is_file() and read_json(file).get("status") == "complete"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
