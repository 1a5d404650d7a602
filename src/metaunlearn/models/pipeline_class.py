"""diffusers' classes of pipelines, which it imports when they are asked for."""

from __future__ import annotations

from typing import Any

import diffusers
from transformers.utils import logging as transformers_logging


def pipeline_class(name: str) -> Any:
    """The class ``name`` of diffusers.

    The classes bring image processors of transformers with them, which advise to install torchvision where it is
    missing. Nothing here needs it, so that is not passed on.
    """
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return getattr(diffusers, name)
    finally:
        transformers_logging.set_verbosity(said)
