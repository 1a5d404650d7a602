"""Trackers: what ``log.jsonl`` gets goes to TensorBoard, Weights & Biases or Trackio as well, if the user says so.

They are accelerate's, so whatever it has a tracker for works, and whatever is registered with its
``register_tracker_class``. Without ``trackers=...`` (``--tracker``) nothing of this is imported and nothing leaves the
machine. A tracker only reads: the weights are the same bits with and without, and one that fails is left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.files import write_json

PROJECT = "metaunlearn"
"""What the trackers call the project that the runs belong to."""
TRACKERS_FOLDER = "trackers"
"""What they keep on this machine, in the run's folder; never uploaded with it."""
IDS_FILE = "ids.json"
"""By tracker, the id under which this run goes on when it is resumed."""

_log = logging.getLogger(__name__)


def check_trackers(names: Sequence[str]) -> None:
    """UserError, before any work, when a tracker is unknown or its package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(
                f"there is no tracker {name!r} (trackers=..., --tracker); known are "
                f"{', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if not _available(name):
            package = name.replace("_", "-")
            raise UserError(
                f"the tracker {name!r} (trackers=..., --tracker) is not installed; run: pip install {package}"
            )


@contextlib.contextmanager
def tracking(names: Sequence[str], folder: Path, config: Mapping[str, Any], after: float) -> Iterator[Trackers]:
    """The trackers of the run in ``folder``, started, and finished however the run ends.

    ``config`` is what the run was asked for. ``after`` is the last step that an earlier part of the run logged: what a
    tracker had of it already is not sent again when a resumed run takes those steps again. Names as
    :func:`check_trackers` lets them pass.
    """
    trackers = Trackers()
    if names:
        trackers.start(dict.fromkeys(names), folder / TRACKERS_FOLDER, config, after)
    try:
        yield trackers
    finally:
        trackers.finish()


class Trackers:
    """Those of one run; one that fails is left out from then on, with one warning."""

    def __init__(self) -> None:
        self._running: dict[str, Any] = {}
        self._after: dict[str, float] = {}

    def start(self, names: Mapping[str, None], folder: Path, config: Mapping[str, Any], after: float) -> None:
        """Start the trackers ``names``, or go on with those that tracked this run before."""
        from accelerate import PartialState

        PartialState()  # accelerate's trackers log through it.
        folder.mkdir(exist_ok=True)
        file = folder / IDS_FILE
        ids: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known = set(ids)
        ids |= {name: uuid.uuid4().hex[:12] for name in names if name not in ids}
        write_json(file, ids)
        for name in names:
            self._after[name] = after if name in known else float("-inf")
            with self._guarded(name):
                tracker = _make(name, folder, ids[name])
                self._running[name] = tracker
                tracker.start()
                if name not in known:
                    tracker.store_init_configuration(flat(config))

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a line of ``log.jsonl``."""
        if not self._running:
            return
        step = record["step"]
        values = {
            key: float(value)
            for key, value in flat(record).items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, tracker in list(self._running.items()):
            if step > self._after[name]:
                with self._guarded(name):
                    tracker.log(values, step=step)

    def finish(self) -> None:
        """Let every tracker send what it still holds."""
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                tracker.finish()
        self._running.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # A run of hours must not end because a tracker's server did.
            self._running.pop(name, None)
            _log.warning(
                "the tracker %s failed (%s: %s); the run goes on without it, and log.jsonl has everything.",
                name,
                type(error).__name__,
                error,
            )


def flat(record: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """``record`` without nesting: ``{"a": {"b": [1, 2]}}`` is ``{"a/b/0": 1, "a/b/1": 2}``; None is left out."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in record.items():
        if isinstance(value, list | tuple):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            found |= {f"{key}/{inner}": item for inner, item in flat(value).items()}
        elif value is not None:
            found[key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def _available(name: str) -> bool:
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    built_in, installed = ([str(kind) for kind in kinds] for kinds in (LoggerType, get_available_trackers()))
    return name in installed or name not in built_in


def _make(name: str, folder: Path, run_id: str) -> Any:
    """accelerate's tracker ``name``, not started yet, for a run that may have been tracked before as ``run_id``."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    run_name = f"{folder.resolve().parent.name}-{run_id}"
    options: dict[str, dict[str, Any]] = {
        "wandb": {"id": run_id, "name": run_name, "resume": "allow", "dir": str(folder)},
        "trackio": {"name": run_name, "resume": "allow"},
    }
    where = [str(folder)] if kind.requires_logging_directory else []
    return kind(PROJECT, *where, **options.get(name, {}))
