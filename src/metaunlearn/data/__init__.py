"""Images with captions, and prompts, from files."""

from __future__ import annotations

from metaunlearn.data.imagefolder import ImageText, fingerprint, read_imagefolder, write_imagefolder
from metaunlearn.data.prompts import Prompt, read_prompts

__all__ = ["ImageText", "Prompt", "fingerprint", "read_imagefolder", "read_prompts", "write_imagefolder"]
