"""An evaluation's memory does not grow with the number of pictures, and a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metaunlearn
from forked_runs import run_and_kill
from metaunlearn import draws
from metaunlearn.data.imagefolder import write_imagefolder
from painter import Painter

TESTS = Path(__file__).parent

MEASURE = f"""
import json, resource, sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from metaunlearn import draws
from painter import Painter

out, reference = Path(sys.argv[1]), Path(sys.argv[2])
painter = draws.generate_images = Painter(256)
peaks = []
for count in (64, 320):
    painter.evaluation(count, reference).run(painter.pipeline, out=out / str(count), kept=out / f"state-{{count}}")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""

KILLED = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from metaunlearn import draws
from metaunlearn.files import write_atomic
from painter import Painter

out, reference = Path(sys.argv[1]), Path(sys.argv[2])
painter = draws.generate_images = Painter(16, pause=0.3)
painter.evaluation(160, reference).run(
    painter.pipeline, out=out, kept=out / "state",
    progress=lambda done, total: write_atomic(out / "log", "a batch\\n" * (done // 32)),
)
"""


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_imagefolder(tmp_path / "real", images, ["x"] * 6)
    return tmp_path / "real"


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path, reference: Path) -> None:
    """320 pictures of 256 pixels would be 240 MiB as floats; the peak may be 60 MiB above that of 64 pictures."""
    environment = {**os.environ, "PYTHONPATH": str(Path(metaunlearn.__file__).parents[1])}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "out"), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many - few < 60, f"{few:.0f} MiB for 64 pictures, {many:.0f} MiB for 320"
    assert len(list((tmp_path / "out/320/images").glob("*.png"))) == 320


def test_a_killed_stream_goes_on_to_the_same_files(
    tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = Painter(16)
    monkeypatch.setattr(draws, "generate_images", painter)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    painter.evaluation(160, reference).run(painter.pipeline, out=whole)
    run_and_kill(KILLED, out, reference, log=out / "log", lines=2)
    assert not (out / "results.json").exists()
    painter.drawn.clear()
    painter.evaluation(160, reference).run(painter.pipeline, out=out, kept=out / "state")
    assert 0 < len(painter.drawn) <= 96, "what was finished is not drawn again"
    for file in ("results.json", "raw.jsonl", "images/metadata.jsonl", "images/000000.png", "images/000159.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes(), file
