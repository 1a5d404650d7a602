"""Where a judge's files lie: in a folder, or on the hub at one revision, of which the cache is asked first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from metaunlearn.errors import UserError, did_you_mean
from metaunlearn.fetching import HUB_SECONDS, fetch_command
from metaunlearn.files import path_of
from metaunlearn.metrics.preprocessing import PREPROCESSOR, PROCESSOR

FILES = ("*.json", "*.txt", "model.safetensors", "model-*.safetensors")

PINNED = {
    # The main branch has its weights as a pickle only; this is its conversion to safetensors.
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
}
"""The revision at which these are meant where none is named."""


class Repository(NamedTuple):
    """A model on the hub."""

    id: str
    revision: str | None
    """A commit, a branch or a tag; ``None``: whatever the main branch is."""

    @classmethod
    def parse(cls, spec: str) -> Repository:
        """``ID`` or ``ID@REVISION``."""
        name, _, revision = spec.partition("@")
        return cls(name, revision or PINNED.get(name))

    @property
    def download(self) -> str:
        """The command that fetches it into the cache."""
        return fetch_command(self.id, FILES, revision=self.revision)


class Found(NamedTuple):
    """A judge's files."""

    folder: Path
    name: str
    """The folder as it was given, or ``ID@COMMIT``."""


def judge_files(spec: str) -> Found:
    """The files of the judge ``spec``: a folder, ``ID`` or ``ID@REVISION``; UserError when they cannot be had."""
    if (folder := path_of(spec)).is_dir():
        return Found(folder, spec)
    repository = Repository.parse(spec)
    if spec.startswith((".", "/", "~")) or repository.id.count("/") > 1:
        raise UserError(f"The judge folder {spec} (--judge) does not exist.")
    try:
        folder = snapshot(repository, FILES, _is_whole)
    except Exception as error:  # Which HTTP library's errors these are depends on huggingface_hub's version.
        raise UserError(
            f"The judge {spec} (--judge) is not in the hub's cache and could not be had from the hub "
            f"({type(error).__name__}).{did_you_mean(spec, ['canvas'])} Expected 'canvas', a folder with config.json "
            f"and model.safetensors, or a hub id, ID or ID@REVISION. Fetch it where there is a network "
            f"({repository.download} --local-dir DIR) and give the folder."
        ) from error
    if not _weights(folder):
        raise UserError(
            f"The judge {spec} (--judge) has no model.safetensors at the revision {folder.name}, and pickles are not "
            "read. The hub's robot offers conversions as pull requests: if it has one, give ID@refs/pr/NUMBER."
        )
    # The cache keeps each revision in a folder named by its commit.
    return Found(folder, f"{repository.id}@{folder.name}")


def snapshot(repository: Repository, files: Sequence[str], whole: Callable[[Path], bool]) -> Path:
    """The folder with those ``files`` (patterns) of ``repository``: the cache's where that is ``whole``, or the hub's.

    Raises whatever keeps it from being had.
    """
    from huggingface_hub import HfApi, snapshot_download

    name, revision, wanted = repository.id, repository.revision, list(files)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
        if whole(folder):
            return folder
    except (OSError, ValueError):
        pass  # Not in the cache.
    # Asked first because one request fails at once where there is no network; a download tries for long.
    HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def _is_whole(folder: Path) -> bool:
    scaling = any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR))
    return scaling and (folder / "config.json").is_file() and _weights(folder)


def _weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))
