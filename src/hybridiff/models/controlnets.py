"""ControlNets: found on disk or on the hub, loaded, and the pipelines that take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..utils.text import one_line
from .sources import SUFFIX, find_path

ENDINGS = {
    "text-to-image": "ControlNetPipeline",
    "image-to-image": "ControlNetImg2ImgPipeline",
    "inpainting": "ControlNetInpaintPipeline",
}
"""Of the class names of diffusers, by task."""


def find_controlnets(names: Sequence[str]) -> tuple[str, ...]:
    """The folders of ControlNets, downloading those that are on the hub.

    Raises:
        UsageError: there is no such ControlNet.
    """
    return tuple(_find(str(name)) for name in names)


def controlled_class(pipeline: type | None, task: str = "text-to-image") -> type:
    """The pipeline class that does for a ControlNet what another one does without.

    Raises:
        UsageError: diffusers has none.
    """
    import diffusers

    name = "this pipeline" if pipeline is None else pipeline.__name__
    if pipeline is not None and "ControlNet" in name:
        return pipeline
    found = getattr(diffusers, name.removesuffix("Pipeline") + ENDINGS[task], None)
    if not isinstance(found, type):
        raise UsageError(f"diffusers has no {task} pipeline with a ControlNet for {name}")
    return found


def load_controlnets(folders: Sequence[str], dtype: Any) -> dict[str, Any]:
    """One ControlNet, or a list of several, as an argument of a pipeline; without folders no argument.

    Raises:
        UsageError: a folder holds none.
    """
    nets = [_load(folder, dtype) for folder in folders]
    return {"controlnet": nets[0] if len(nets) == 1 else nets} if nets else {}


def _load(folder: str, dtype: Any) -> Any:
    import diffusers

    name = str(json.loads((Path(folder) / "config.json").read_text()).get("_class_name"))
    network = getattr(diffusers, name, None)
    if network is None or "ControlNet" not in name:
        raise UsageError(f"{folder} holds a {name}, not a ControlNet")
    try:
        return network.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load a ControlNet from {folder}: {one_line(error, 200)}") from error


def _find(name: str) -> str:
    path = find_path("ControlNet", name, ["*.json", f"*{SUFFIX}"])
    if not (path / "config.json").is_file():
        raise UsageError(f"{name} is not a ControlNet: there is no config.json in it")
    return str(path)
