"""Weights that are published as pickles on GitHub: where, and by what their files are known. ``convert`` reads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from metaunlearn.errors import UserError

LAION = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file."""

    url: str
    digest: str
    """``sha256:`` and SHA-256 of the file; or, where nobody has published that, ``git:`` and the SHA-1 that names it in
    its repository."""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]

    @property
    def fetch(self) -> str:
        """The command that fetches it."""
        return f"curl -L -o {self.file} {self.url}"

    def check(self, file: Path) -> None:
        """UserError when ``file`` is another."""
        kind = self.digest.partition(":")[0]
        found = f"{kind}:{_DIGESTS[kind](file.read_bytes())}"
        if found != self.digest:
            raise UserError(
                f"{file} (file=, FILE) is not {self.file} as it is published: expected {self.digest}, got {found}. "
                f"Fetch it: {self.fetch}; or convert it as weights of your own (published=False, --own)."
            )


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


_DIGESTS = {"sha256": lambda data: hashlib.sha256(data).hexdigest(), "git": _git}

PUBLISHED = {
    # The main branch has this head for Keras only; a pull request of 2023 has it for torch.
    "laion-nsfw-l14": Published(
        url=f"{LAION}/d499e9c87c68f1abf5418caef823c7b609714ca3/models/clip_ViT-L-14_openai_binary_nsfw_head.pth",
        digest="sha256:fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6",
    ),
    "laion-nsfw-h14": Published(
        url=f"{LAION}/d6bb8fe31fd4aecbfed7dfb62df4fe5858bfc014/h14_nsfw.pth",
        digest="git:5c5d8ecea5da82f9e6f1201692691f9f8874759d",
    ),
    "inception-fid": Published(
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        digest="sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
}
"""By the name that ``convert`` takes."""


def making(name: str, out: str) -> str:
    """The commands that fetch the weights ``name`` and make safetensors of them."""
    weights = PUBLISHED[name]
    return f"{weights.fetch} && metaunlearn convert {name} {weights.file} --out {out}"
