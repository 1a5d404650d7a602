"""What other packages bring by entry points: erasing methods, attacks, metrics.

CONTRIBUTING.md has a template of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from metaunlearn.errors import UserError, first_line
from metaunlearn.settings import Settings


@dataclass(frozen=True)
class Group:
    """A group of entry points: name = what a user calls it, object = its class."""

    name: str
    what: str
    """A word for one of them."""
    option: str
    """Where a user names one."""

    def names(self) -> list[str]:
        """Of all that is installed, sorted, each once."""
        return sorted({point.name for point in entry_points(group=self.name)})

    def find(self, name: str, *, ours: bool) -> EntryPoint | None:
        """The entry point called ``name``, None when no package has it; whether it is one of ``ours`` as well.

        UserError when more than one brings it.
        """
        theirs = list(entry_points(group=self.name, name=name))
        if len(theirs) + ours > 1:
            givers = [package_of(point) for point in theirs] + (["metaunlearn"] if ours else [])
            raise UserError(
                f"the {self.what} {name!r} ({self.option}) is brought by {' and by '.join(givers)}; "
                f"rename the entry point of the group {self.name} in one of them, or uninstall it."
            )
        return theirs[0] if theirs else None

    def givers(self, name: str) -> list[str]:
        """The packages that bring ``name``; none of what is built in."""
        return [point.dist.name for point in entry_points(group=self.name, name=name) if point.dist is not None]

    def where(self, point: EntryPoint) -> str:
        """``point`` in words, for a message to begin with."""
        return f"the {self.what} {point.name!r} of the package {package_of(point)} ({point.value})"

    def load(self, point: EntryPoint) -> Any:
        """What is behind ``point``; UserError when its module cannot be imported."""
        try:
            return point.load()
        except Exception as error:  # Its module runs here, and may fail in any way.
            raise UserError(
                f"{self.where(point)} cannot be loaded: {type(error).__name__}: {first_line(error)}. Install it again, "
                f"or choose another {self.what} ({self.option})."
            ) from error

    def load_settings(self, point: EntryPoint) -> type[Settings]:
        """The class of settings behind ``point``."""
        kind = self.load(point)
        if not (isinstance(kind, type) and issubclass(kind, Settings)):
            raise UserError(f"{self.where(point)} is no subclass of metaunlearn.settings.Settings.")
        return kind


def package_of(point: EntryPoint) -> str:
    """Which package brings ``point``, in a word."""
    return point.dist.name if point.dist is not None else point.value
