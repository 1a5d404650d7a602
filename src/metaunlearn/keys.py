"""What ``--set`` can change of a run, by the name of its method or its attack."""

from __future__ import annotations

from metaunlearn.attacks.brought import GROUP as ATTACKS
from metaunlearn.attacks.registry import KINDS, kind_of
from metaunlearn.config import EraseSettings
from metaunlearn.erasure.registry import find
from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.settings import Key, keys_of


def keys_by_name(name: str) -> dict[str, list[Key]]:
    """By title, the keys of the method of erasing or of the kind of attack called ``name``; UserError when it is
    neither."""
    attacks = [*KINDS, *ATTACKS.names()]
    if name in attacks:
        return {f"attack --kind {name}": keys_of(kind_of(name))}
    try:
        entry = find(name)
    except UserError as error:
        raise UserError(
            f"there is no attack {name!r} (NAME).{did_you_mean(name, attacks)} Attacks: {', '.join(attacks)}. "
            f"Nor a method of erasing: {error}"
        ) from None
    own = [key for key in keys_of(entry.kind) if not (entry.fixed and key.name in entry.preset)]
    taken = {key.name for key in own}
    shared = [key for key in keys_of(EraseSettings) if key.name not in taken]
    return {f"erase --method {entry.name}, its own": own, "erase, by every method": shared}
