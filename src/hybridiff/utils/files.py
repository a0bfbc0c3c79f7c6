"""Files: written so that others may read meanwhile; and where torch keeps what it downloaded."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that nobody ever reads half of it; text in UTF-8."""
    beside = path.with_name(f".{path.name}.part")
    if isinstance(content, str):
        beside.write_text(content, encoding="utf-8")
    else:
        beside.write_bytes(content)
    os.replace(beside, path)


def downloaded_by_torch(name: str) -> Path:
    """Where torch keeps a file of weights once something has downloaded it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / name
