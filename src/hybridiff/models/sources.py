"""Where the files of models lie: on this disk, or else on the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
    missing = f"no {what} {name!r}: no such file or folder"
    require_hub_id(missing, name, slashes=2 if name.endswith(SUFFIX) else 1)
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, repository, *file = name.split("/")
    with asking_hub(f"{missing}, and the hub gave none"):
        if file:
            return Path(hf_hub_download(f"{owner}/{repository}", file[0]))
        return Path(snapshot_download(name, allow_patterns=list(patterns)))


def require_hub_id(missing: str, name: str, slashes: int = 1) -> None:
    """Refuse what cannot be an id of the hub, with a sentence that begins with what was not found."""
    if name.count("/") != slashes or name.startswith((".", "/", "~")):
        raise UsageError(f"{missing}, and not a hub id (owner/name)")


@contextlib.contextmanager
def asking_hub(gave_none: str) -> Iterator[None]:
    """Around a download: that the hub gave nothing is told with this sentence, and why in brackets."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"{gave_none} ({one_line(error, 160).split(' (')[0]})") from error
