"""What a model makes, where it goes, and the arguments of the call that depend on it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..models.folder import ModelFolder
from .media import LATENTS, USUAL_FPS
from .output import Output

COUNTS = {
    "images": "num_images_per_prompt",
    "frames": "num_videos_per_prompt",
    "audios": "num_waveforms_per_prompt",
}


@dataclass(frozen=True)
class Target:
    """Where generations go.

    Attributes:
        output: Their files.
        call: The arguments of the pipeline's call.
        fps: Frames a second of videos.
    """

    output: Output
    call: dict[str, Any]
    fps: float

    @staticmethod
    def choose(folder: ModelFolder, path: str, call: Mapping[str, Any], fps: int | None, count: int) -> Target:
        """What fits a model.

        Args:
            folder: The model.
            path: The user's output.
            call: The user's arguments of the call.
            fps: Frames a second, where the user said how many.
            count: What is made for each prompt.

        Raises:
            UsageError: what the model makes cannot be written so.
        """
        latents = path.lower().endswith(LATENTS) or call.get("output_type") == "latent"
        output, further = Output.parse(path, folder.makes, latents), dict(call)
        if latents:
            further["output_type"] = "latent"
        if count > 1:
            further[COUNTS[folder.makes]] = count
        if folder.makes == "frames":
            return _film(folder, output, further, fps)
        if fps is not None:
            raise UsageError(f"--fps is for videos; {folder.name} makes {folder.makes}")
        return Target(output, further, USUAL_FPS)


def _film(folder: ModelFolder, output: Output, call: dict[str, Any], fps: int | None) -> Target:
    """Some networks are told for how many frames a second they work."""
    known = parameters(folder.pipeline_class)
    name = next((name for name in ("frame_rate", "fps") if name in known), None)
    if name is None:
        return Target(output, call, fps or USUAL_FPS)
    if fps is not None:
        call[name] = fps
    return Target(output, call, float(call.get(name) or known[name].default or USUAL_FPS))


def parameters(pipeline: type | None) -> Mapping[str, inspect.Parameter]:
    """The arguments that a pipeline's class takes; none where it is not known."""
    return inspect.signature(pipeline.__call__).parameters if pipeline is not None else {}
