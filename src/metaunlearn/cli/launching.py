"""Which of several processes this one is, if ``accelerate launch`` or ``torchrun`` started it; asked without torch."""

from __future__ import annotations

import os

from metaunlearn.errors import UserError


def count() -> int:
    """How many processes there are; 1 when no launcher started this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def number() -> int:
    """This one's number; 0 is the main process, which alone prints."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def first_here() -> bool:
    """Whether it is the first on its machine: what the user did wrong is said once on each."""
    return count() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def check_alone() -> None:
    """UserError when several processes were started for what takes one."""
    if count() > 1:
        raise UserError(
            f"this command runs in one process, and {count()} were started: leave out accelerate launch (torchrun). "
            "Several share erase, attack, generate and evaluate, but not attack's --search nor its kinds on prompts."
        )
