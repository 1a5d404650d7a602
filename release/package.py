"""Build what is published, check it, and try it where nothing of this source tree can be seen (make package).

    python release/package.py [--pip-args '--extra-index-url ...'] [--here]

Leaves the source archive and the wheel in dist/. The trial installs the wheel with all it depends on, in the versions
of constraints.txt, into a new environment. With --here that environment borrows what this Python has installed instead,
which takes seconds but proves less: not that the dependencies are complete.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from contents import ROOT, problems_of_sdist, problems_of_wheel

DIST = ROOT / "dist"
TRIALS = (
    "metaunlearn --version",
    "metaunlearn recipes list",
    "metaunlearn erase canvas --concept knife --set steps=2 --set forget_images=2 --set retain_images=2 "
    "--set bank_trajectories=1 --set bank_steps=2 --set batch_size=2 --out erased",
)
"""What must work from outside the source tree: the last one needs Canvas's weights, a recipe and all of torch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pip-args", default="", help="passed on to pip install")
    parser.add_argument("--here", action="store_true", help="borrow this Python's packages instead of installing any")
    options = parser.parse_args()
    sdist, wheel = build()
    problems = problems_of_sdist(sdist) + problems_of_wheel(wheel)
    if problems:
        sys.exit("\n".join(problems))
    run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel])
    with tempfile.TemporaryDirectory() as folder:
        try_out(wheel, Path(folder), shlex.split(options.pip_args), here=options.here)
    print(f"good: {sdist.relative_to(ROOT)}, {wheel.relative_to(ROOT)} ({wheel.stat().st_size / 1e6:.1f} MB)")


def build() -> tuple[Path, Path]:
    """The source archive, and the wheel that is built from it."""
    for left_over in (DIST, ROOT / "build", ROOT / "src" / "metaunlearn.egg-info"):
        shutil.rmtree(left_over, ignore_errors=True)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT])
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    return sdist, wheel


def try_out(wheel: Path, folder: Path, pip_args: list[str], *, here: bool) -> None:
    """Install ``wheel`` into a new environment in ``folder`` and run :data:`TRIALS` there."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    pip = [python, "-m", "pip", "install", "--quiet", *pip_args]
    if here:
        run([*pip, "--no-deps", wheel])
        where = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        (Path(where.strip()) / "borrowed.pth").write_text(
            "\n".join(path for path in sys.path if path.endswith("-packages"))
        )
    else:
        run([*pip, "--constraint", ROOT / "constraints.txt", wheel])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.check_output(
        [python, "-c", "import metaunlearn; print(metaunlearn.__file__)"], cwd=folder, env=environment, text=True
    )
    if not found.startswith(str(folder)):
        sys.exit(f"the trial would run {found.strip()}, not the wheel")
    for trial in TRIALS:
        program, *arguments = shlex.split(trial)
        run([programs / program, *arguments], cwd=folder, env=environment)


def run(command: list[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run ``command`` and show it; end with its exit code if it fails."""
    words = [str(part) for part in command]
    print("$", shlex.join(words), flush=True)
    code = subprocess.run(words, cwd=cwd, env=env, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
