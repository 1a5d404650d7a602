"""The model card of a run folder: README.md, which says what was erased, how, what was measured, and how to load it."""

from __future__ import annotations

import contextlib
import html
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from metaunlearn.data.concepts import NOTHING
from metaunlearn.erasure.registry import unread_by
from metaunlearn.errors import UserError
from metaunlearn.files import path_of, read_json, write_atomic
from metaunlearn.records import RUN_FILE, record_of
from metaunlearn.report.data import read_summary
from metaunlearn.report.story import rows
from metaunlearn.runs import RESULTS_FILE, short_name

CARD_FILE = "README.md"
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
"""What a card begins with, for programs."""
LICENCE = re.compile(r"""^license:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)
UNKNOWN_LICENCE = "other"
SETTINGS = (
    "steps", "learning_rate", "batch_size", "gamma1", "gamma2", "zeta", "post_attack_loss", "zeta_margin",
    "retain_loss", "retain_weight", "meta_retain", "inner_steps", "inner_learning_rate", "inner_optimizer",
    "meta_gradient",
)  # fmt: skip
"""Those that a card shows; run.json has all."""


def write_card(folder: Path, *, licence: str | None = None) -> Path:
    """Write ``folder/README.md`` from ``run.json`` and from what lies beside the folder; return its path.

    Beside it: ``summary.json`` of a run that erased and attacked, and run folders of ``evaluate`` on this model or on
    what an ``attack`` made of it. ``licence`` is the base model's, None: what its own card says. Raises UserError when
    ``folder`` holds no complete erasing run.
    """
    record = record_of(folder)
    if record is None or record["request"].get("command") != "erase" or record.get("status") != "complete":
        raise UserError(f"{folder} holds no complete run of metaunlearn erase (DIR), so there is nothing to describe.")
    request = record["request"]
    licence = licence or _licence_of(request["model"]) or UNKNOWN_LICENCE
    text = "\n\n".join(
        [
            _front_matter(record, licence),
            *_what(record),
            *_measured(folder),
            _loading(),
            _licence_line(licence, request["model"]),
        ]
    )
    write_atomic(folder / CARD_FILE, text + "\n")
    return folder / CARD_FILE


def _base(record: dict[str, Any]) -> str:
    """What the base model was called where it was erased; the card may be written where its path means nothing."""
    name: str = record.get("model_name") or short_name(record["request"]["model"])
    return name


def _licence_of(model: str) -> str | None:
    """What the base model's own card says, in its folder or in the hub's cache."""
    card = path_of(model) / CARD_FILE
    if not path_of(model).exists() and model.count("/") == 1:
        cached = try_to_load_from_cache(model, CARD_FILE)
        card = Path(cached) if isinstance(cached, str) else card
    matter = FRONT_MATTER.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    found = LICENCE.search(matter[1]) if matter else None
    return found[1] if found else None


def _front_matter(record: dict[str, Any], licence: str) -> str:
    base = _base(record)
    lines = ["---", f"license: {licence}", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if base.count("/") == 1:
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "tags: [concept-erasure, metaunlearn]", "---"])


def _what(record: dict[str, Any]) -> Iterator[str]:
    request = record["request"]
    concepts = ", ".join(map(_one_line, request["concepts"]))
    base = _base(record)
    yield f"# {base} without {concepts}"
    how = "so that finetuning does not easily bring it back (meta-unlearning)" if request["meta"] else "plainly"
    yield f"From **{base}** the concept **{concepts}** was erased {how}, by the method `{request['method']}`."
    kept = [*request["related"], *(text for text in request["retain"] if text != NOTHING)]
    if kept:
        yield f"Kept by name: {', '.join(kept)}."
    settings = {key: request["settings"][key] for key in SETTINGS if key in request["settings"]}
    with contextlib.suppress(UserError):  # A third party's method that is not installed here.
        unread = unread_by(request["method"], meta=request["meta"])
        settings = {key: value for key, value in settings.items() if key not in unread}
    settings |= request["method_settings"]
    table = "\n".join(f"| `{key}` | {_said(value)} |" for key, value in settings.items())
    yield f"| setting | value |\n|---|---|\n{table}"
    versions = record["versions"]
    yield (
        f"Recipe `{request['recipe']}`, seed {request['seed']}, metaunlearn {versions['metaunlearn']}, torch "
        f"{versions['torch']}; `run.json` has all settings and hashes. SHA-256 of the base's parameters: "
        f"`{request['weights']}`."
    )


def _one_line(concept: str) -> str:
    """A concept as text of one line, synonyms with "or" between."""
    return html.escape(" ".join(concept.replace("|", " or ").split()), quote=False)


def _said(value: Any) -> str:
    """A setting in a cell of a table; lists without brackets."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _measured(folder: Path) -> Iterator[str]:
    yield "## What was measured"
    tables = [*_story(folder), *_evaluations(folder)]
    yield from tables
    if not tables:
        yield (
            "Nothing yet: neither how well the concept is gone nor how long it stays gone under finetuning. "
            "`metaunlearn attack` and `metaunlearn evaluate` measure it, `metaunlearn card` adds it here."
        )


def _story(folder: Path) -> Iterator[str]:
    """From ``summary.json`` beside the folder, of the model that is called as the folder is."""
    summary = read_summary(folder.resolve().parent)
    if summary is None:
        return
    lines = []
    for row in rows(summary, every_step=True):
        if row.model == folder.resolve().name:
            cells = (row.concept, row.related, row.unrelated)
            lines.append(f"| {row.state} | " + " | ".join("" if c is None else _figure(*c.score) for c in cells) + " |")
    if lines:
        header = f"| attack | {summary.concept} | related | unrelated |\n|---|---|---|---|\n"
        yield "Percentage of pictures that show it, with the 95 % interval:\n\n" + header + "\n".join(lines)


def _evaluations(folder: Path) -> Iterator[str]:
    """From run folders beside this one: evaluations of it, and of checkpoints of attacks on it."""
    beside = folder.resolve().parent
    # Two levels and no more: what lies beside may be somebody's home.
    files = [*beside.glob(f"*/{RUN_FILE}"), *beside.glob(f"*/*/{RUN_FILE}")]
    found = {file.parent: record_of(file.parent) for file in sorted(files)}
    # A checkpoint's own record is a copy of its run's, with the step that it is of.
    runs = {path: record for path, record in found.items() if record is not None and "step" not in record}
    states: dict[Path, tuple[float, str]] = {folder.resolve(): (0, "before any attack")}
    results: list[tuple[Path, tuple[float, str]]] = []
    for path, record in runs.items():
        request = record["request"]
        if request.get("command") == "attack" and folder.resolve() in _places(request.get("model"), beside):
            states |= _checkpoints(path, record)
            # Of an attack on prompts and of a search; shards leave theirs beside themselves, together.
            results.append((path.parent if path.name.startswith("shard-1-of-") else path, _after_all(request)))
    for path, record in runs.items():
        results += [(path, states[place]) for place in _evaluated(record["request"], beside) if place in states][:1]
    lines = []
    for path, (place, state) in results:
        if (path / RESULTS_FILE).is_file():
            for metric, score in read_json(path / RESULTS_FILE).items():
                figure = _figure(score["value"], score.get("low"), score.get("high"))
                what = _what_of(metric, score.get("protocol") or {})
                line = f"| {state} | {what} | {figure} | {score.get('n', '')} | {path.name} |"
                lines.append((place, state, line))
    if lines:
        header = "| model | metric | value [95 % interval] | n | run |\n|---|---|---|---|---|\n"
        yield header + "\n".join(line for *_, line in sorted(lines))


def _checkpoints(path: Path, record: dict[str, Any]) -> dict[Path, tuple[float, str]]:
    """What an attack left in ``path``: each folder's place in the table, and words for it."""
    request = record["request"]
    run = f"{request['kind']} ({path.name})"
    if isinstance(request.get("steps"), list):
        found = {path / f"step-{step:06d}": (step, f"after {step} steps of {run}") for step in request["steps"]}
    else:
        pairs = zip(request.get("strengths") or [], record.get("checkpoints") or [], strict=False)  # Once complete.
        found = {path / name: (level, f"{name} of {run}") for level, name in pairs}
    return found | ({path: [*found.values()][-1]} if found else {})  # The folder itself is the last of them.


def _after_all(request: dict[str, Any]) -> tuple[float, str]:
    """Last in the table: attacks that say themselves what they reached."""
    return math.inf, f"under {request['kind']}" + (" --search" if "search" in request else "")


def _evaluated(request: dict[str, Any], beside: Path) -> list[Path]:
    """Where the model of an evaluation may lie, or the one that drew the pictures that were evaluated."""
    if request.get("command") == "evaluate --pictures":
        drawn = [
            record for place in _places(request.get("pictures"), beside) if (record := record_of(place)) is not None
        ]
        request = {**drawn[0]["request"], "command": "evaluate"} if drawn else {}
    return _places(request.get("model"), beside) if request.get("command") == "evaluate" else []


def _places(named: str | None, beside: Path) -> list[Path]:
    """What a run's request names, wherever above ``beside`` the command was called that named it."""
    if named is None:
        return []
    return [Path(named).resolve(), *((above / named).resolve() for above in (beside, *beside.parents))]


def _what_of(metric: str, protocol: dict[str, Any]) -> str:
    """A metric, and what it looked for if it is one that looks for something."""
    concept = protocol.get("concept")
    return f"{metric} ({_one_line(concept)})" if isinstance(concept, str) else metric


def _figure(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _loading() -> str:
    return (
        "## How to load it\n\n```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER OR REPOSITORY")\n```\n\n'
        "`metaunlearn export` makes one file of it for ComfyUI and A1111."
    )


def _licence_line(licence: str, model: str) -> str:
    line = f"## Licence\n\nThe licence of the base model holds: `{licence}`."
    if model == "canvas":
        line += (
            " Canvas has learned from emoji of Noto (Google), Twemoji (Twitter and contributors, CC BY 4.0), Fluent "
            "(Microsoft) and OpenMoji (CC BY-SA 4.0): credit them as metaunlearn's `NOTICE` does."
        )
    elif licence == UNKNOWN_LICENCE:
        line += " Its name was not found beside the base model; `metaunlearn card DIR --licence NAME` sets it."
    return line
