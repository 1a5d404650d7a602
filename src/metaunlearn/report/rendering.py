"""Templates into pages: the environment, its filters, the style sheet and the scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from metaunlearn.errors import shortened
from metaunlearn.report.story import MODEL_TITLES, percent

_TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("slide.js", "read.js", "print.js")
"""What every page runs."""


def render(template: str, *, scripts: Sequence[str] = (), **values: Any) -> str:
    """``templates/{template}`` with ``values``, every string of them escaped.

    ``scripts`` names files of ``templates`` that, behind those of every page, become the only script which the page
    lets a browser run.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=_points, figure=_figure, words=_words, brief=_brief)
    code = "".join(f"{{\n{_text(name)}}}\n" for name in (*SCRIPTS, *scripts))  # A block each: no name meets another.
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(_text("style.css")), script=Markup(code), script_digest=digest, titles=MODEL_TITLES, **values
    )


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _points(value: float, like: float | None = None) -> str:
    """A signed difference, with as many decimals as the figure ``like`` that it belongs to."""
    text = f"{value:+.{_decimals(like)}f}"
    return f"±{text[1:]}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def _figure(value: float, like: float | None = None) -> str:
    """A measured figure with the decimals of ``like``; None stands for a percentage."""
    return f"{value:.{_decimals(like)}f}".replace("-", "\N{MINUS SIGN}")


def _decimals(like: float | None) -> int:
    """Three significant digits for what is no percentage; one decimal for percentages."""
    if like is None or abs(like) >= 10:
        return 1
    return 2 if abs(like) >= 1 else 3 if abs(like) >= 0.1 else 4


def _words(value: object) -> str:
    """A setting as a reader wants it: no Python spelling."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(_words(part) for part in value)
    return value if isinstance(value, str) else _json(value)


BRIEF = 44
"""Letters of a setting that is told to tell tables apart; the protocol below a table has all of it."""


def _brief(value: object) -> str:
    """A setting, or the beginning of a long one: lists of labels and hashes."""
    return shortened(_words(value), BRIEF)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
