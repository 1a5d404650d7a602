"""Work shared out by hand: the same command several times into one folder, each with its own ``--shard``."""

from __future__ import annotations

from dataclasses import dataclass

from metaunlearn.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Which of ``count`` shares a process does."""

    number: int = 1
    """From 1 to ``count``."""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``"2/4"``: the second of four."""
        number, _, count = text.partition("/") if isinstance(text, str) else ("", "", "")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"Expected a shard as K/N with 1 <= K <= N, e.g. 2/4 (shard=, --shard), got {text!r}.")
        return cls(int(number), int(count))

    def turns(self, total: int) -> range:
        """Its share of the indices below ``total``: every ``count``-th."""
        return range(self.number - 1, total, self.count)
