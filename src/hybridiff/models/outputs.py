"""What pipelines make: images, films or sounds, by whatever name their outputs have it."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

NAMES = {
    "images": "images",
    "image": "images",
    "frames": "frames",
    "video": "frames",
    "audios": "audios",
    "audio": "audios",
    "sound": "audios",
}
"""Fields of the outputs of diffusers, and what a `Generation` calls them."""


def made_by(pipeline: type | None) -> tuple[str, ...]:
    """What a pipeline's class makes, told by the outputs that its module knows; empty where they do not tell."""
    from diffusers.utils import BaseOutput

    known = vars(sys.modules[pipeline.__module__]).values() if pipeline is not None else ()
    outputs = [one for one in known if isinstance(one, type) and issubclass(one, BaseOutput)]
    fields = {field.name for one in outputs if dataclasses.is_dataclass(one) for field in dataclasses.fields(one)}
    return tuple(dict.fromkeys(kind for name, kind in NAMES.items() if name in fields))


def take_output(output: Any) -> dict[str, Any]:
    """What a pipeline returned, by the names of a `Generation`; tensors on the CPU."""
    return {kind: _on_cpu(getattr(output, name)) for name, kind in NAMES.items() if hasattr(output, name)}


def sampling_rate(pipe: Any) -> int | None:
    """Samples a second of the sounds that a pipeline makes; None where no part of it says."""
    for part in ("vocoder", "vae", "audio_vae"):
        config = getattr(getattr(pipe, part, None), "config", None)
        for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
            if isinstance(rate := getattr(config, name, None), int):
                return rate
    return None


def _on_cpu(made: Any) -> Any:
    if isinstance(made, (list, tuple)):
        return [_on_cpu(one) for one in made]
    return made.cpu() if hasattr(made, "cpu") else made
