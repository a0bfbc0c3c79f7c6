"""Files of prompts: one per line, plain or JSON, or one JSON list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError

FIELDS: dict[str, type] = {"prompt": str, "seed": int, "negative_prompt": str}

SEEDS = range(2**64)
"""Those that torch's generators take."""


@dataclass(frozen=True)
class Prompt:
    """One line of a file of prompts; None where the line leaves it to the caller."""

    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None

    @property
    def arguments(self) -> dict[str, str]:
        """What it gives a pipeline's call beside prompt and seed."""
        return {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a file of prompts: plain text lines, or JSON objects with prompt, seed and negative_prompt.

    Empty lines are skipped. A line that starts with a brace is JSON. The file may be one JSON list of either, too.

    Raises:
        UsageError: the file cannot be read, holds no prompt, or a prompt is malformed; names its line or place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the prompts file {path}: {reason}") from error
    items = _listed(text, path)
    if items is None:
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        prompts = [_parse(line, f"{path}, line {number}") for number, line in lines if line]
    else:
        prompts = [_checked(item, f"{path}, item {number}") for number, item in enumerate(items, start=1)]
    if not prompts:
        raise UsageError(f"the prompts file {path} holds no prompt")
    return prompts


def _listed(text: str, path: str | Path) -> list[Any] | None:
    """What a text lists; None where it is no JSON list, though its first line may begin with a bracket."""
    first = text.lstrip().partition("\n")[0].strip()
    if not first.startswith("["):
        return None
    try:
        items: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        if first == "[" or first.startswith(("[{", '["')):
            raise UsageError(f"{path}, line {error.lineno}: not a JSON list ({error.msg})") from error
        return None
    return items


def _parse(line: str, where: str) -> Prompt:
    if not line.startswith("{"):
        return Prompt(line)
    try:
        return _checked(json.loads(line), where)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not a JSON object ({error.msg} at column {error.colno})") from error


def _checked(fields: Any, where: str) -> Prompt:
    if isinstance(fields, str):
        fields = {"prompt": fields.strip()}
    if not isinstance(fields, dict):
        raise UsageError(f"{where}: must be text or an object with a prompt, got {fields!r}")
    for name, value in fields.items():
        if name not in FIELDS:
            raise UsageError(f"{where}: unknown key {name!r}; known are {', '.join(FIELDS)}")
        if type(value) is not FIELDS[name]:
            raise UsageError(f"{where}: {name} must be {_kind(FIELDS[name])}, got {value!r}")
    if not fields.get("prompt"):
        raise UsageError(f"{where}: there is no prompt")
    if fields.get("seed", 0) not in SEEDS:
        raise UsageError(f"{where}: seed must be from 0 to 2**64 - 1, got {fields['seed']}")
    return Prompt(**fields)


def _kind(wanted: type) -> str:
    return "an integer" if wanted is int else "text"
