"""The command line: typed functions over the library's, one table of errors, one place that prints."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from metaunlearn.cli.commands import app
from metaunlearn.cli.console import print_failure
from metaunlearn.cli.errors import failure

__all__ = ["app", "main"]

_QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What keeps the libraries from printing among our own lines; read by them when they are imported."""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the run failed, 2 the call was wrong, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Looked up here as well as by typer: a call that typer cannot parse is answered in the form it asked for.
    as_json = "--json" in arguments
    debug = "--debug" in arguments or os.environ.get("METAUNLEARN_DEBUG", "") not in ("", "0")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not debug:
        warnings.simplefilter("ignore")
    try:
        code = app(arguments, prog_name="metaunlearn", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        found = failure(error, arguments)
        print_failure(found, as_json=as_json)
        return found.exit_code
    return code if isinstance(code, int) else 0
