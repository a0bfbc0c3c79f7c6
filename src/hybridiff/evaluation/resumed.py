"""Files of work that a command goes on with, where it was stopped or more is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    content: dict[str, Any] = json.loads(json.dumps(value))
    return content


def read_parts(path: Path, what: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a file.

    Args:
        path: Which.
        what: What it should be.
        parts: The types of what has to be in it.

    Raises:
        UsageError: it cannot be read, or is something else; names it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        malformed = [name for name, kinds in parts.items() if not isinstance(content.get(name, 0), kinds)]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, AttributeError):
        malformed = ["content"]
    if malformed:
        what = f"{path} is no {what}: its {', '.join(malformed)} cannot be used"
        raise UsageError(f"{what}; give another --output, or --fresh to overwrite it")
    return content


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of what is not alike in both."""
    return [name for name in dict(ours) | dict(theirs) if ours.get(name) != theirs.get(name)]


def refuse_other(path: Path, what: str, names: Iterable[str]) -> None:
    """Refuse to go on with something else.

    Args:
        path: Where it lies.
        what: What it is.
        names: Of what differs; none where nothing does.

    Raises:
        UsageError: something differs.
    """
    if other := ", ".join(names):
        raise UsageError(f"{path} holds {what}, with other {other}; use another --output, or --fresh")
