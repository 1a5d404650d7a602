"""A page in headless Chromium, for the tests of reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)")


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run headless Chromium with a profile of its own under ``folder``."""
    assert CHROMIUM is not None
    profile = folder / f"profile-{len(list(folder.glob('profile-*')))}"
    fixed = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet = "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    command = [CHROMIUM, *fixed.split(), *quiet.split(), f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def in_frames(folder: Path, report: Path, widths: tuple[int, ...], script: str) -> dict[str, str]:
    """Show ``report`` in frames of ``widths``; in each run ``script`` (uses ``inner``, ``width``; sets ``found``)."""
    page = json.dumps(report.read_text(encoding="utf-8")).replace("</", "<\\/")
    (folder / "frames.html").write_text(
        f"<!doctype html><body><script>const page = {page}; for (const width of {list(widths)}) {{\n"
        "const frame = document.createElement('iframe');\n"
        "frame.style.cssText = `width:${width}px;height:800px;border:0`;\n"
        "frame.srcdoc = page;\n"
        f"frame.onload = () => {{ const inner = frame.contentDocument; let found; {script}\n"
        "const line = document.createElement('p'); line.textContent = `${width}: ${found}`;\n"
        "document.body.append(line);\n"
        "}; document.body.append(frame); }</script></body>"
    )
    address = (folder / "frames.html").as_uri()
    done = chromium(folder, "--window-size=1400,900", "--virtual-time-budget=8000", "--dump-dom", address)
    return dict(re.findall(r"<p>(\d+): ([^<]*)</p>", done.stdout))
