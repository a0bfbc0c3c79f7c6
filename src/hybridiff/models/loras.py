"""LoRAs: which ones, found on disk or on the hub, and put on a pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..utils.text import one_line
from .sources import SUFFIX, find_path


@dataclass(frozen=True)
class Lora:
    """A LoRA on disk.

    Attributes:
        name: What the user called it.
        path: Its file, or the folder that holds it.
        scale: How strongly it acts.
    """

    name: str
    path: str
    scale: float = 1.0


def find_loras(texts: Sequence[str]) -> tuple[Lora, ...]:
    """Find LoRAs, downloading those that are on the hub.

    Args:
        texts: `PATH_OR_ID[:SCALE]` each; ids are `owner/name`, or `owner/name/file.safetensors`.

    Raises:
        UsageError: peft is missing, a scale is no number, or there is no such LoRA.
    """
    if isinstance(texts, (str, os.PathLike)):
        raise UsageError(f"loras must be a list, got {str(texts)!r}")
    if texts and find_spec("peft") is None:
        raise UsageError("LoRAs need peft: pip install 'hybridiff[lora]'")
    return tuple(_find(str(text)) for text in texts)


def put_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    """Let a pipeline have these LoRAs, and no others.

    Raises:
        UsageError: the pipeline takes none, or one does not fit; then the pipeline has none at all.
    """
    if not hasattr(pipe, "load_lora_weights"):
        if loras:
            raise UsageError(f"{type(pipe).__name__} takes no LoRA")
        return
    if find_spec("peft") is None:
        return
    pipe.unload_lora_weights()
    names = [f"lora_{number}" for number in range(len(loras))]
    try:
        for name, lora in zip(names, loras, strict=True):
            _load(pipe, lora, name)
        if names:
            pipe.set_adapters(names, [lora.scale for lora in loras])
    except BaseException:
        pipe.unload_lora_weights()
        raise


def _load(pipe: Any, lora: Lora, name: str) -> None:
    try:
        pipe.load_lora_weights(lora.path, adapter_name=name, local_files_only=True, use_safetensors=True)
    except Exception as error:  # of diffusers, peft, safetensors and torch, whatever does not fit
        raise UsageError(f"the LoRA {lora.name} does not fit {type(pipe).__name__}: {one_line(error, 160)}") from error
    if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
        raise UsageError(f"the LoRA {lora.name} does not fit {type(pipe).__name__}: it has nothing for its networks")


def _find(text: str) -> Lora:
    name, scale = _split(text)
    path = find_path("LoRA", name, [f"*{SUFFIX}"])
    if path.is_file() and path.suffix != SUFFIX:
        raise UsageError(f"the LoRA {name} is no {SUFFIX} file")
    return Lora(name, str(path), scale)


def _split(text: str) -> tuple[str, float]:
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).expanduser().exists():
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        raise UsageError(f"the scale of the LoRA {name} must be a number, got {scale!r}") from None
