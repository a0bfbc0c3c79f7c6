"""Captions of a data set in COCO's format of annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .prompts import Prompt, read_prompts

_NEEDED: dict[str, type] = {"image_id": int, "id": int, "caption": str}


def read_captions(path: str | Path) -> list[Prompt]:
    """One caption for each image of a file like COCO's `captions_val2014.json`; any other file is one of prompts.

    Images stand in the order of their ids; each has the caption with the lowest id of its own.

    Raises:
        UsageError: the file cannot be read or is malformed; see also `read_prompts`.
    """
    content = _read_object(Path(path)) if str(path).lower().endswith(".json") else {}
    if not content.keys() & {"images", "annotations"}:
        return read_prompts(path)
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise UsageError(f"{path} holds no annotations; give COCO's captions, such as captions_val2014.json")
    for number, one in enumerate(annotations, start=1):
        _check(one, f"{path}, annotation {number}")
    first: dict[int, str] = {}
    for one in sorted(annotations, key=lambda one: (one["image_id"], one["id"])):
        first.setdefault(one["image_id"], " ".join(one["caption"].split()))
    return [Prompt(caption) for caption in first.values()]


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a file of prompts says by itself what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}


def _check(annotation: Any, where: str) -> None:
    for name, kind in _NEEDED.items():
        value = annotation.get(name) if isinstance(annotation, dict) else None
        if type(value) is not kind or not str(value).strip():
            what = "text" if kind is str else "an integer"
            raise UsageError(f"{where}: {name} must be {what}, got {value!r}; give COCO's captions, not its instances")
