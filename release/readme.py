"""Make the links and pictures of README.md absolute, for a package index shows it without the files beside it.

    python release/readme.py https://HOST/OWNER/NAME v1.2.3

Rewrites README.md in place; the release workflow calls it in a checkout of its own.
"""

from __future__ import annotations

import re
import sys

from contents import ROOT

LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, tag: str) -> str:
    """``text``, where each link to a file here leads to that file of ``tag``, and a picture is the file itself."""

    def there(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        return f"{picture}{label}({repository}/{'raw' if picture else 'blob'}/{tag}/{path})"

    return LINK.sub(there, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")
