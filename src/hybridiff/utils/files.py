"""Files that others may read while they are written."""

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
