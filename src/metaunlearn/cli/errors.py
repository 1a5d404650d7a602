"""From an exception to what the user reads and the exit code: one table."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

import typer

from metaunlearn.errors import RunError, UserError

RESUMABLE = frozenset({"attack", "demo", "erase", "evaluate", "generate", "make", "tune"})
"""Commands that have ``--resume``."""
GROUPS = frozenset({"data", "recipes"})
"""Names that stand before a command's own."""

_PICTURES = "Draw fewer pictures at once (--set picture_batch=...)"
LESS_MEMORY = {
    "erase": f"{_PICTURES} if it was making pictures; else take the gradient difference, without a double backward "
    "(--set meta_gradient=gradient-difference), or lower batch_size (--set batch_size=...)",
    "attack": "Lower batch_size (--set batch_size=...), or switch on gradient_checkpointing (--set "
    "gradient_checkpointing=true) where the attack trains",
    "generate": _PICTURES,
    "evaluate": _PICTURES,
    "make": "Lower batch_size (--set batch_size=...)",
}
"""What each command has for it."""

WRONG_CALL = 2
"""The exit code of a call that was wrong."""


class Failure(NamedTuple):
    """What is printed, and the exit code."""

    message: str
    exit_code: int


def _as_it_says(error: BaseException, arguments: Sequence[str]) -> str:
    return str(error)


def _usage(error: BaseException, arguments: Sequence[str]) -> str:
    assert isinstance(error, typer.TyperException)
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "metaunlearn"
    return f"{error.format_message()} See: {command} --help"


def _command(arguments: Sequence[str]) -> str:
    """The name of the command, without that of its group."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    return next((word for word in words if word not in GROUPS), "")


def _interrupted(error: BaseException, arguments: Sequence[str]) -> str:
    command = _command(arguments)
    if command == "bench":  # Goes on by itself.
        return f"interrupted; what is complete was kept. Go on with:\n  metaunlearn {shlex.join(arguments)}"
    if command not in RESUMABLE:
        return "interrupted."
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    return f"interrupted; what is complete was kept. Go on with:\n  metaunlearn {shlex.join(again)}"


def _missing_package(error: BaseException, arguments: Sequence[str]) -> str:
    return f"{error}. Install it with: pip install {getattr(error, 'name', None) or 'the package named above'}"


def _out_of_memory(error: BaseException, arguments: Sequence[str]) -> str:
    lower = LESS_MEMORY.get(_command(arguments), "Give it less at once")
    return f"memory ran out ({error}). {lower}; metaunlearn doctor MODEL estimates what erasing needs."


def _file_system(error: BaseException, arguments: Sequence[str]) -> str:
    return f"the file system refused: {error}"


def _unexpected(error: BaseException, arguments: Sequence[str]) -> str:
    again = shlex.join(["metaunlearn", "--debug", *(a for a in arguments if a != "--debug")])
    return f"{type(error).__name__}: {error}\nThis is not expected to happen. For the traceback, run:\n  {again}"


TABLE: tuple[tuple[type[BaseException], int, Callable[[BaseException, Sequence[str]], str]], ...] = (
    (UserError, WRONG_CALL, _as_it_says),
    (typer.TyperException, WRONG_CALL, _usage),
    (RunError, 1, _as_it_says),
    (KeyboardInterrupt, 130, _interrupted),
    (typer.Abort, 130, _interrupted),
    (ModuleNotFoundError, 1, _missing_package),
    (MemoryError, 1, _out_of_memory),
    (OSError, 1, _file_system),
    (BaseException, 1, _unexpected),
)
"""Exception, exit code, message; the first row that matches holds."""


def failure(error: BaseException, arguments: Sequence[str]) -> Failure:
    """What to print for ``error``, raised by the call ``metaunlearn ARGUMENTS``."""
    # By name: classes of torch and of safetensors could only be named after importing them.
    kind = {"OutOfMemoryError": MemoryError}.get(type(error).__name__, type(error))
    if kind.__name__ == "SafetensorError" and "os error" in str(error):  # A disk that is full, say.
        kind = OSError
    exit_code, explain = next((code, explain) for row, code, explain in TABLE if issubclass(kind, row))
    return Failure(explain(error, arguments), exit_code)
