"""Drawing without a safety checker, a watermark or a bar; the pipeline is as it was afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FILTERS = ("safety_checker", "watermark")


@contextmanager
def unfiltered(pipeline: Any) -> Iterator[None]:
    """While this is open, ``pipeline`` hands out what it draws.

    What is measured, erased and trained on is what the weights draw: a picture that a checker has blackened shows no
    concept, whatever the weights know. Afterwards the pipeline has its filters again.
    """
    # Past the pipeline's own __setattr__, which would note in its configuration that it has no checker.
    state = vars(pipeline)
    there = {name: state[name] for name in FILTERS if state.get(name) is not None}
    state.update(dict.fromkeys(there))
    try:
        yield
    finally:
        state.update(there)


@contextmanager
def without_bar(pipeline: Any) -> Iterator[None]:
    """While this is open ``pipeline`` prints no bar of its own; afterwards it does as its owner wants."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**(before or {}))


@contextmanager
def scheduler_kept(pipeline: Any) -> Iterator[None]:
    """While this is open ``pipeline`` draws with a copy of its scheduler.

    Some change their own settings while they draw (``lower_order_final``), and the pipeline is saved afterwards.
    """
    own = pipeline.scheduler
    pipeline.scheduler = copy.deepcopy(own)
    try:
        yield
    finally:
        pipeline.scheduler = own
