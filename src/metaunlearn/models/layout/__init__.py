"""The original layout of a Stable Diffusion checkpoint, one file, which ComfyUI and A1111 load: names on both sides.

Diffusers keeps each part in a folder of its own, under other names. A table of links says, tensor by tensor, which name
on one side is which on the other; exporting and importing read the same table, so one is the other's inverse.
"""

from __future__ import annotations

from metaunlearn.models.layout.families import (
    FAMILIES,
    Family,
    Part,
    family_of_keys,
    family_of_pipeline,
    usual_names,
)
from metaunlearn.models.layout.link import Link, to_diffusers, to_original

__all__ = [
    "FAMILIES",
    "Family",
    "Link",
    "Part",
    "family_of_keys",
    "family_of_pipeline",
    "to_diffusers",
    "to_original",
    "usual_names",
]
