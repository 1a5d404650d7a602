"""What an abuser does to a published model; importing this alone loads no torch."""

from __future__ import annotations

ON_PROMPTS = "unlearndiffatk"
"""The kind of attack that is on prompts, and changes no model."""
