"""How much of a prompt a pipeline reads: what exceeds a tokenizer's length is left out, and never heard of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from metaunlearn.errors import shortened
from metaunlearn.models.checks import TOKENIZERS

logger = logging.getLogger(__name__)

SHOWN = 60
"""Characters of a prompt in a message."""


def read_at_most(pipeline: Any) -> int:
    """Tokens of a prompt that every tokenizer of ``pipeline`` reads, start and end included."""
    return min(tokenizer.model_max_length for tokenizer in _tokenizers(pipeline))


def too_long(pipeline: Any, prompts: Sequence[str]) -> list[str]:
    """Those of the ``prompts`` whose ends a tokenizer cuts off, each once."""
    distinct = list(dict.fromkeys(prompts))
    cut: set[str] = set()
    for tokenizer in _tokenizers(pipeline):
        limit = tokenizer.model_max_length
        rows = tokenizer(distinct, truncation=True, max_length=limit + 1).input_ids if distinct else []
        cut |= {prompt for prompt, row in zip(distinct, rows, strict=True) if len(row) > limit}
    return [prompt for prompt in distinct if prompt in cut]


def warn_of_too_long(pipeline: Any, prompts: Sequence[str]) -> None:
    """Say how many of the ``prompts`` are read in part only."""
    if cut := too_long(pipeline, prompts):
        logger.warning(
            "%d of %d prompts are longer than the %d tokens that MODEL reads, so their ends are left out, such as %r",
            len(cut), len({*prompts}), read_at_most(pipeline), shortened(cut[0], SHOWN),
        )  # fmt: skip


def _tokenizers(pipeline: Any) -> list[Any]:
    found = [getattr(pipeline, name, None) for name in TOKENIZERS]
    return [tokenizer for tokenizer in found if tokenizer is not None]
