"""Uploading a run folder to the hub, through the hub's own client."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from metaunlearn.errors import RunError, UserError, first_line

LEFT_OUT = ("state/*", "data/*", "trackers/*", ".*")
"""Not uploaded: resumable state, pictures of what was erased, and what trackers noted of this machine."""
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


class Hub(Protocol):
    """What is needed of ``huggingface_hub.HfApi``."""

    def whoami(self) -> Any:
        """Raises when nobody is signed in."""
        ...

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make the repository unless it is there."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, ignore_patterns: list[str], commit_message: str) -> Any:
        """Upload files."""
        ...


def sign_in(repository: str, hub: Hub | None = None) -> Hub:
    """The hub, once it is known that pushing to ``repository`` can work; UserError before any work."""
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"expected a repository as OWNER/NAME (push=..., --push REPO), got {repository!r}.")
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        hub.whoami()
    except Exception as error:  # Which HTTP library's errors these are depends on huggingface_hub's version.
        raise UserError(
            f"cannot push to {repository} (push=..., --push REPO): {first_line(error)}. "
            "Sign in with: hf auth login, or leave --push out and push later with: metaunlearn card DIR --push REPO"
        ) from error
    return hub


def push(folder: Path, repository: str, hub: Hub) -> str:
    """Upload ``folder`` to ``repository``, which is made private if it is new; return its address on the hub."""
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            ignore_patterns=list(LEFT_OUT),
            commit_message="Upload by metaunlearn",
        )
    except Exception as error:
        raise RunError(
            f"pushing to {repository} failed: {first_line(error)}. The folder {folder} is complete; try again with: "
            f"metaunlearn card {folder} --push {repository}"
        ) from error
    return repository
