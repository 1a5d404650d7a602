"""Progress as bars, for notebooks and scripts; the command line has its own."""

from __future__ import annotations

from typing import Any


class ProgressBars:
    """A bar for each kind of work, on a terminal or in a notebook.

    Give it as ``progress=`` to any function here: ``erase(..., progress=ProgressBars())``.
    """

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, *said: Any) -> None:
        """``(label, done, total)``, or ``(done, total)`` from functions that do one kind of work."""
        *label, done, total = said
        name = label[0] if label else ""
        bar = self._bars.get(name)
        if bar is None or bar.total != total or bar.n > done:  # Other work of that name, or the same again.
            self.close(name)
            from tqdm.auto import tqdm

            bar = self._bars[name] = tqdm(desc=name or None, total=total)
        bar.update(done - bar.n)
        if done >= total:
            self.close(name)

    def close(self, name: str) -> None:
        """Leave the bar of that name as it is."""
        bar = self._bars.pop(name, None)
        if bar is not None:
            bar.close()
