"""Where the files of models lie: on this disk, or else on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..utils.text import one_line

SUFFIX = ".safetensors"
"""Of files that hold weights."""


def find_path(what: str, name: str, patterns: Sequence[str]) -> Path:
    """A file or folder on this disk, or else one from the hub.

    Args:
        what: What it is, for messages.
        name: A path, `owner/name`, or `owner/name/file.safetensors`.
        patterns: What to download of a repository.

    Raises:
        UsageError: there is none.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    slashes = 2 if name.endswith(SUFFIX) else 1
    if name.count("/") != slashes or name.startswith((".", "/", "~")):
        raise UsageError(f"no {what} {name!r}: no such file or folder, and not a hub id (owner/name)")
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, repository, *file = name.split("/")
    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{repository}", file[0]))
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no {what} {name!r}: no such file or folder, and the hub gave none ({one_line(error, 160)})"
        ) from error
